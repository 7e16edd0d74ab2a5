"""The benchmark behind `scripts/bench`: tlsproxy and its peers on the same work, interleaved, on pinned cores.

`cli` reads the options, `arena` owns the machine (cores, certificate, backend, running peers), `peers` knows how each
proxy is configured, `load` drives the generators, `measure` reads what the kernel says a process tree has used,
`rows` is the list of works and budgets, `report` turns samples into tables. Nothing here is imported by tlsproxy.
"""
