"""The work behind the commands; those that look after caches share a file.

May import: errors, config, exits, cache, cache.pairs, cache.predictions, common, compute, data,
export, networks, networks.backbones, prediction, profiling, report, runs, runtime,
search.answers, search.exact, search.guarantees, search.problem, search.sampled, sentences,
signals, training, training.stages.
"""
