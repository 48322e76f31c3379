"""``fedlearn chaos``: a run under faults on purpose, compared with the undisturbed one.

    schedule    which faults, in which rounds: a pure function of the seed
    trial       one run under some of them, resumed as often as needed
    processes   every process of a trial, found by a mark in its environment
    network     hosts on this machine, as network namespaces whose links can be cut and slowed down
    hosts       a trial with one rank on each of them
    verdict     what became of each fault
    report      the table, and what is written down
    rehearse    the verb
"""
