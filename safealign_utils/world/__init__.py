"""The exactly solvable language world: its grammar, its oracle and its optima."""

from .world import World as World
