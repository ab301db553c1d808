"""The world's responses as a trie of tokens: which token may follow which prefix.

The grammar tells how much probability a network leaks outside the world, lets a policy be trained
and read with a softmax over the allowed tokens only, and packs all responses of a prompt into a few
rows (`Forest`), so that exact evaluation reads every shared prefix once.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .language import EOS
from .world import World


def build_trie(sequences):
    """Trie of R token sequences: (paths, parent).

    `paths` [R, T] are node numbers along each sequence, -1 behind its end; `parent` [M], -1 at the
    root.
    """
    nodes, parent = {}, []
    paths = np.full((len(sequences), max(map(len, sequences))), -1)
    for r, sequence in enumerate(sequences):
        at = -1
        for t, token in enumerate(sequence):
            step = (at, token)
            if step not in nodes:
                nodes[step] = len(parent)
                parent.append(at)
            at = paths[r, t] = nodes[step]
    return paths, np.array(parent)


@dataclass(frozen=True)
class Forest:
    """The trie cut into G rows of at most T tokens: inputs are inner nodes, targets all K nodes.

    `node` [G, T] number of the node at each place (-1 padding), `ancestors` bool [G, T, T] (query,
    key), `depth` [G, T]; for each target k its `row`, its `place` = place of its parent (-1: the
    prompt's last token) and its `target` node.
    """

    node: np.ndarray
    ancestors: np.ndarray
    depth: np.ndarray
    row: np.ndarray
    place: np.ndarray
    target: np.ndarray


class Grammar:
    """Token trie of every category of a `World` for one tokenizer's vocabulary of V tokens.

    `paths` [R, T] and `parent` [M] are shared by all categories, `tokens` [C, M] are their ids,
    `length` [R] the tokens of a response with its end-of-sequence token. A *state* is a prefix in
    one category; `allowed` bool [S, V] says which tokens may follow it.
    """

    def __init__(self, world: World, token_id: dict):
        self.world, self.vocabulary = world, len(token_id)
        texts = [[y.text(c).split() + [EOS] for y in world.responses] for c in world.categories]
        self.paths, self.parent = build_trie(texts[0])
        if not all(np.array_equal(build_trie(t)[0], self.paths) for t in texts):
            raise ValueError("the response tries of the categories differ in shape")
        self.length = (self.paths >= 0).sum(axis=1)
        self.tokens = np.zeros((len(world.categories), len(self.parent)), dtype=np.int64)
        for c, responses in enumerate(texts):
            for path, words in zip(self.paths, responses):
                self.tokens[c, path[: len(words)]] = [token_id[w] for w in words]
        states = len(world.categories) * (len(self.parent) + 1)
        self.allowed = np.zeros((states, self.vocabulary), dtype=bool)
        for c, tokens in enumerate(self.tokens):
            self.allowed[self.states(c, self.parent), tokens] = True
        names = [c.name for c in world.categories]
        self.category = np.array([names.index(x.category) for x in world.prompts])

    def cache_content(self):
        """The world, and which tokens may follow which prefix."""
        trie = [self.tokens, self.paths, self.parent, self.length]
        return [self.world, *trie, self.category, self.allowed]

    def response(self, prompt_id, y):
        """Token ids and grammar states of response number y to a prompt, both [length]."""
        c, path = self.category[prompt_id], self.paths[y, : self.length[y]]
        return self.tokens[c, path], self.states(c, self.parent[path])

    def states(self, category, parent_node):
        """State numbers of prefixes that end in `parent_node` (-1: nothing said yet)."""
        return category * (len(self.parent) + 1) + parent_node + 1

    @cached_property
    def _steps(self):
        """Every (state, token) of the grammar, as sorted numbers, with the node it leads to."""
        C = len(self.tokens)
        keys = self.states(np.arange(C)[:, None], self.parent[None]) * self.vocabulary + self.tokens
        order = np.argsort(keys, axis=None)
        return keys.ravel()[order], np.tile(np.arange(len(self.parent)), C)[order]

    def next_state(self, state, token):
        """The states [N] after one more token each; a token of -1 stays where it is.

        Raises ValueError where the grammar does not allow the token.
        """
        keys, nodes = self._steps
        at = np.searchsorted(keys, state * self.vocabulary + token).clip(max=len(keys) - 1)
        moves = token >= 0
        if not (keys[at] == state * self.vocabulary + token)[moves].all():
            raise ValueError("token: the grammar does not allow it here")
        category = state // (len(self.parent) + 1)
        return np.where(moves, self.states(category, nodes[at]), state)

    @cached_property
    def _numbers(self):
        """Response number of every token sequence, a dictionary a category."""
        spans = [path[:n] for path, n in zip(self.paths, self.length)]
        return [{ids[span].tobytes(): y for y, span in enumerate(spans)} for ids in self.tokens]

    def number(self, prompt_id, tokens):
        """The number of a response given as token ids with their end. Raises KeyError."""
        ids = np.asarray(tokens, dtype=np.int64)
        return self._numbers[self.category[prompt_id]][ids.tobytes()]

    @property
    def branching(self):
        """bool [M]: the token of this node was a choice; the grammar forces all the others."""
        children = np.bincount(self.parent + 1, minlength=len(self.parent) + 1)
        return children[self.parent + 1] > 1

    def forest(self, group):
        """Cut the responses, in trie order, into groups of `group`; each group becomes one row."""
        order, M = np.lexsort(self.paths.T[::-1]), len(self.parent)
        first, level, inner = np.full(M, -1), np.zeros(M + 1, dtype=np.int64), []
        for t, nodes in enumerate(self.paths.T):
            level[nodes[nodes >= 0]] = t
        for g, start in enumerate(range(0, len(order), group)):
            paths = self.paths[order[start : start + group]]
            nodes = np.unique(paths[paths >= 0])
            first[nodes] = np.where(first[nodes] < 0, g, first[nodes])  # the row that reads a node
            inner.append(np.setdiff1d(self.parent[nodes], [-1]))
        width = max(map(len, inner))
        node, at = np.full((len(inner), width), -1), np.full((len(inner), M + 1), -1)
        ancestors = np.zeros((len(inner), width, width), dtype=bool)
        for g, own in enumerate(inner):
            node[g, : len(own)], at[g, own] = own, np.arange(len(own))
            for i, above in enumerate(self.parent[own]):  # parents come first
                if above >= 0:
                    ancestors[g, i] = ancestors[g, at[g, above]]
                ancestors[g, i, i] = True
        target = np.argsort(first, kind="stable")
        row = first[target]
        return Forest(node, ancestors, level[node], row, at[row, self.parent[target]], target)
