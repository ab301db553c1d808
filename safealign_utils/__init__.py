"""SafeAlign Kit: one preference loss with four levers, checked in a world that can be solved exactly."""

__version__ = "0.1.0"
