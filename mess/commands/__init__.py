"""The work behind each command, one file each.

May import: errors, config, exits, cache, cache.pairs, cache.predictions, common, compute, data,
export, networks, prediction, profiling, report, runs, runtime, search.answers, search.exact,
search.problem, search.sampled, signals, training, training.stages.
"""
