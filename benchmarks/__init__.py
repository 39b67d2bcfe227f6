"""How fast are records between two processes: memenpsf and its peers, side by side.

    make bench                                   # everything, some twenty minutes
    make bench ARGUMENTS=--quick                 # under two minutes
    python -m benchmarks --workloads rate --peers memenpsf,pyzmq

Two real processes exchange messages.  They are unrelated (each started by itself, meeting by an
address), except for peers whose two ends can only be inherited; those are started by
multiprocessing's "spawn", never by fork.  A third process, the controller, gives orders and waits.

Every message carries a sequence number, which the receiver checks, and arrives as a Python object
of its own.  Sequence numbers wrap at 1,024 (for large messages earlier, at 16 at the least), so
that messages are made before the clock starts; the receiver takes exactly as many as were sent,
and what is left over shows in the next turn.  Up to 1 KiB all of a message is compared, above that
its number and its length.

The time of a turn is from the sender's first send until the receiver has its last message: the
clock is the same for all processes.  Peers take turns, so that what disturbs the machine disturbs
them all; the tables show the median of the turns, with minimum and maximum.

Either process's main thread stays on a processor of its own during a turn (`--no-pin` lets the
scheduler choose, which on an idle machine often puts both on one: waking up is cheap then, and a
busy waiter keeps the other from running).  Threads that a library starts may run anywhere.

What each module is for: `peers` opens connections, one small class for each peer; `roles`
(and `large_roles`) is what a process does in a turn; `workloads` says which roles, cases and units
belong together; `worker` and `processes` are the two ends of the leash; `runner` measures;
`report`, `page` and `drawing` show; `baselines` is what some of it costs in C alone.

Benchmarks are hard, and this one is no exception.  On few processors it measures the scheduler as
well; the loops around each call are Python and cost all peers the same; and nobody is an expert in
all peers: each is used with the settings that its documentation begins with, said in its class.
"""
