"""The exactly solvable language world, in reading order.

language    the words, the oracle and the behaviour distribution, as tables
attributes  the same of a harder world, where the thing asked about decides what is dangerous
world       prompts, responses, reward, cost and preference pairs of them (the data card)
grammar     all responses as a trie of tokens
optimum     what is known exactly: optimal policies, the dual, frontiers, token advantages
tabular     the one loss, minimised without a network
redundant   four data sets of mostly re-worded pairs, to select from
"""
