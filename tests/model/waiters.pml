/*
 * Several threads of one process wait on one socket: one of them reads it, the
 * others sleep on a lock of their own; nobody sleeps for ever while what he
 * waits for is there.  (DESIGN, "Sleeping and waking", last paragraph.)
 *
 * A thread that finds nothing to do
 *   takes a ticket           the generation, before it arms
 *   arms                     the epoch of its kind becomes odd, or, if others
 *                            have made it odd already, a new odd number, for
 *                            the doorbell of the old one may be rung and gone
 *   fences and looks again
 *   and then, under a mutex
 *     if the generation is not the ticket: the socket was drained since; again
 *     if nobody reads:                     reads (polls, drains)
 *     else:                                sleeps until a reader releases it
 * The reader, having drained, under the mutex: nobody reads, a new generation,
 * everyone is released.  Whoever leaves last of its kind makes the epoch even.
 *
 * The ticket is compared before *either* choice.  A newcomer that armed, looked,
 * and was overtaken by a reader who drained its doorbell must not start to
 * poll: the socket is empty, and no second doorbell comes for this number.
 *
 * ONE_SECTION is the other way to the same end, and has no ticket: arming, the
 * second look and the choice are one critical section.  Who enters it before the
 * reader has handed over is released; who enters after armed after the drain.
 *
 * With TWO_STEPS, a thread leaves as in _link/plans.py: that it neither reads nor
 * waits any more is noted at once, where no signal handler can come between, and
 * without the mutex; the rest follows under it.  So it counts whether somebody read
 * when the section began: later he may have drained the doorbell that answers us,
 * and be about to release us.
 *
 * Memory is sequentially consistent here, each access a step of its own, and
 * "atomic" stands where the mutex is held; store buffers are in wake.pml.  A pop
 * is one step too, unless TRYLOCK gives it a lock and a beginning and an end.  The
 * peer publishes and frees from two threads, each with its own `rung`.  What is
 * no longer needed is set to 0, for fewer states.
 */

#ifndef CAPACITY
#define CAPACITY 1
#endif
#ifndef BELLS
#define BELLS 1
#endif

#define RECORDS 0
#define SPACE 1
#define EVERYONE 3
/* Who waits: KIND of what, how many times (WANTS); how often the peer GIVES it. */
#ifdef PAIR /* two readers, one of them twice */
#define THREADS 2
#define KIND(n) RECORDS
#define WANTS(n) (2 - n)
#else
#define THREADS 3
#define WANTS(n) 1
#ifdef ECHO /* a reader, two writers; the second slot comes only for a record taken */
#define KIND(n) (n == 0 -> RECORDS : SPACE)
#else /* two readers, a writer */
#define KIND(n) (n == 2 -> SPACE : RECORDS)
#endif
#endif
#ifdef ECHO
#define GIVES_RECORDS 1
#define GIVES_SPACE 2
#define MAY_GIVE (kind == RECORDS || given <= records_taken)
#else
#define MAY_GIVE true
#ifdef PAIR
#define GIVES_RECORDS 3
#define GIVES_SPACE 0
#elif defined(PEER_ENDS) /* too early */
#define GIVES_RECORDS 1
#define GIVES_SPACE 0
#else
#define GIVES_RECORDS 2
#define GIVES_SPACE 1
#endif
#endif

byte there[2];   /* records to read; slots to write */
byte epoch[2];   /* odd while any thread waits for that */
byte waiting[2]; /* threads that do */
bool busy[2];    /* a thread is pushing, or popping */
byte records_taken;

byte generation;
bool reader;
bool asleep[THREADS];
bool held; /* the mutex, where it is held over several steps */

chan inbox = [BELLS] of { bit };
bool draining;
byte peers = 2;
bool peer_gone; /* the socket shows EOF */
bool ended;     /* and a reader of ours has seen it */

/* ---- the peer ---- */

proctype peer(byte kind, gives)
{
	byte given, e, rung, rings;
	do
	:: given == gives -> break
	:: else ->
end_full:
		atomic { there[kind] < CAPACITY && MAY_GIVE -> there[kind]++; given++ }
		e = epoch[kind];
		if
		:: (e & 1) && e != rung ->
			rung = e;
			rings++;
			assert(rings <= (e + 1) / 2); /* every arming ends on the next odd number */
			if
			:: atomic { nfull(inbox) -> inbox!kind }
			:: full(inbox) || draining
			fi
		:: else
		fi;
		e = 0
	od;
	atomic {
		peers--;
#ifdef PEER_ENDS
		peer_gone = (peers == 0)
#endif
	}
}

/* ---- our process ---- */

inline release(kinds)
{
	n = 0;
	do
	:: n < THREADS ->
		if
		:: kinds & (1 << KIND(n)) -> asleep[n] = false
		:: else
		fi;
		n++
	:: else -> break
	od;
	n = 0
}

inline drain()
{
	atomic {
		ended = peer_gone;
		draining = true;
		do
#ifdef OPCODE_DISPATCH
		:: inbox?RECORDS -> rang = rang | 1 << RECORDS
		:: inbox?SPACE -> rang = rang | 1 << SPACE
#else
		:: nempty(inbox) -> inbox?_
#endif
		:: empty(inbox) -> break
		od
	};
	draining = false
}

inline hand_over(whom)
{
	atomic {
		!held ->
		reader = false;
#ifndef GENERATION_EARLY
		generation++;
#endif
#ifdef NO_HANDOVER
		skip
#elif defined(RELEASE_ONE)
		if
		:: asleep[0] -> asleep[0] = false
		:: asleep[1] -> asleep[1] = false
		:: asleep[2] -> asleep[2] = false
		:: else
		fi
#else
		release(whom)
#endif
	}
}

#if defined(TWO_STEPS) && !defined(CHOICE_LATE)
#define MAY_READ (!others)
#elif defined(NO_TICKET) || defined(READER_IGNORES_TICKET) || defined(ONE_SECTION)
#define MAY_READ (!reader)
#else
#define MAY_READ (!reader && ticket == generation)
#endif
#if defined(TWO_STEPS) && !defined(CHOICE_LATE)
#define MAY_FOLLOW others
#elif defined(NO_TICKET) || defined(FOLLOWER_IGNORES_TICKET) || defined(ONE_SECTION)
#define MAY_FOLLOW reader
#else
#define MAY_FOLLOW (reader && ticket == generation)
#endif

#ifdef TRYLOCK
#define LOCK atomic { !busy[kind] -> busy[kind] = true };
#define UNLOCK busy[kind] = false;
#else
#define LOCK
#define UNLOCK
#endif

#ifdef BUSY_IS_EMPTY
#define ANYTHING (there[kind] > 0 && !busy[kind])
#else
#define ANYTHING (there[kind] > 0)
#endif

proctype thread(byte me, kind, wants; bool may_quit)
{
	byte ticket, n, rang;
	bool over, quits;
#ifdef TWO_STEPS
	bool leading, others;
#endif

	do
	:: wants == 0 || quits -> break
	:: else ->
		over = ended; /* before the last look */
		LOCK
		if
		:: atomic {
			there[kind] > 0 ->
			there[kind]--;
			records_taken = records_taken + (kind == RECORDS);
			wants--
		   };
			UNLOCK
#ifdef OPCODE_DISPATCH
			atomic {
				if
				:: !reader -> release(EVERYONE) /* one of them will read */
				:: else
				fi
			};
#endif
			goto next
		:: there[kind] == 0
		fi;
		UNLOCK
		if
		:: over -> break
		:: else
		fi;

#ifndef TICKET_LATE
		ticket = generation;
#endif
		atomic { /* arm */
			!held ->
#ifdef ONE_SECTION
			held = true;
#endif
#ifdef TWO_STEPS
			others = reader;
#endif
			waiting[kind]++;
#ifdef ARM_KEEPS_NUMBER
			epoch[kind] = epoch[kind] | 1
#else
			epoch[kind] = epoch[kind] + 1 + (epoch[kind] & 1)
#endif
		};
#ifndef NO_RECHECK
		if
		:: atomic { ANYTHING || ended -> held = false; goto leave }
		:: else
		fi;
#endif
#ifdef TICKET_LATE
		ticket = generation;
#endif

		atomic {
			held = false;
			if
			:: MAY_READ -> reader = true
			:: MAY_FOLLOW -> asleep[me] = true; goto follow
			:: !MAY_READ && !MAY_FOLLOW -> goto leave
			fi
		};

poll:
		if
		:: nempty(inbox) || peer_gone
		:: may_quit ->
			quits = true;
#ifdef QUITTER_KEEPS_QUIET
			reader = false;
			goto leave
#endif
			goto hand
		fi;
#ifdef GENERATION_EARLY
		generation++;
#endif
		drain();
#ifdef SWALLOW
		if
		:: there[kind] == 0 && !ended -> /* not for me: sleep on */
			epoch[kind] = epoch[kind] + 2;
			if
			:: there[kind] == 0 -> goto poll
			:: else
			fi
		:: else
		fi;
#endif
hand:
#ifdef TWO_STEPS
		leading = true;
#elif defined(OPCODE_DISPATCH)
		hand_over(rang);
		rang = 0;
#else
		hand_over(EVERYONE);
#endif
		goto leave;

follow:
		if
		:: !asleep[me]
		:: atomic { may_quit && !held -> asleep[me] = false; quits = true }
		fi;

leave:
#ifdef TWO_STEPS
		if
		:: leading -> reader = false
		:: else
		fi;
		waiting[kind]--;
#endif
		atomic {
			!held ->
			ticket = 0;
#ifdef TWO_STEPS
			others = false;
#ifndef NO_HANDOVER
			if
			:: leading -> release(EVERYONE); leading = false
			:: else
			fi;
#endif
#else
			waiting[kind]--;
#endif
			if
#ifdef LEAVE_MAKES_EVEN
			:: epoch[kind] & 1 -> epoch[kind]++
#elif defined(TWO_STEPS)
			:: waiting[kind] == 0 && (epoch[kind] & 1) -> epoch[kind]++
#else
			:: waiting[kind] == 0 -> epoch[kind]++
#endif
			:: else
			fi
		};
next:
		skip
	od;
	assert(wants == 0 || quits || (ended && there[kind] == 0))
}

#ifdef SNOOP
/* A call that must not wait but takes control messages off the socket. */
active proctype snooper()
{
	byte n, rang;
#ifndef DRAIN_UNASKED
	atomic {
		!held ->
		if
		:: !reader -> reader = true
		:: else -> goto done /* the reader will bring them */
		fi
	};
#endif
	drain();
#ifndef DRAIN_UNASKED
	hand_over(EVERYONE);
#endif
done:
	skip
}
#endif

#ifdef QUITTER
#define MAY_QUIT true
#else
#define MAY_QUIT false
#endif

init {
	atomic {
		run thread(0, KIND(0), WANTS(0), MAY_QUIT);
		run thread(1, KIND(1), WANTS(1), false);
#if THREADS > 2
		run thread(2, KIND(2), WANTS(2), false);
#endif
		run peer(RECORDS, GIVES_RECORDS);
		run peer(SPACE, GIVES_SPACE)
	}
}
