/*
 * One sender, one receiver, one bounded queue: who sleeps is woken, and what
 * is read is what was written.  (DESIGN, "Sleeping and waking".)
 *
 * Memory.  Every shared variable has one writer, so a process never reads back
 * its own stores: it keeps private copies, and store forwarding cannot arise.
 * Stores go into the writer's buffer and reach `mem` when the hardware pleases:
 *   default  in program order (TSO: x86);
 *   WEAK     in any order between different addresses, except that a release
 *            store leaves only after everything before it (aarch64 and C11).
 * A full fence waits until the buffer is empty.  Loads happen in program order.
 * System calls order nothing here, which is less than the kernel promises.
 *
 * Socket.  Each inbox holds BELLS bytes; a doorbell to a full one is dropped.
 * It may also be dropped while the owner is draining, because the kernel takes
 * a buffer off the queue before it gives its space back.  Nothing times out.
 *
 * What a process no longer needs it sets to 0, for fewer states.
 *
 * A run is good if it ends with both processes finished.  No end label stands
 * in them, so whoever sleeps for ever is an "invalid end state".
 */

#ifndef CAPACITY
#define CAPACITY 1
#endif
#if CAPACITY > 2
#error "hardware() knows two slots"
#endif
#ifndef RECORDS
#define RECORDS 3
#endif
#ifndef BELLS
#define BELLS 1
#endif
#ifndef SPURIOUS
#define SPURIOUS 0 /* so many polls of each side may return for no reason */
#endif
#define PENDING 5 /* no more stores than that lie between two fences */

/* Addresses.  The sender writes HEAD, WAIT_SPACE, CLOSED and the slots. */
#define HEAD 0
#define TAIL 1
#define WAIT_RECORDS 2
#define WAIT_SPACE 3
#define CLOSED 4
#define SLOT 5

byte mem[SLOT + CAPACITY];
chan sent = [PENDING] of { byte, byte };     /* the sender's store buffer */
chan received = [PENDING] of { byte, byte }; /* the receiver's store buffer */

chan to_receiver = [BELLS] of { bit };
chan to_sender = [BELLS] of { bit };
bool receiver_drains, sender_drains;
bool sender_gone, receiver_gone; /* the other end of the socket sees EOF */
bool kill_sender, kill_receiver;

/* ---- what the hardware and the kernel do ---- */

#define COMMIT(at) mem[at] = value; value = 0

active proctype hardware()
{
	byte at, value;
end:
	do
#ifndef WEAK
	:: atomic { sent?at,value -> COMMIT(at); at = 0 }
	:: atomic { received?at,value -> COMMIT(at); at = 0 }
#else
	/* "?X" takes X only from the front of the buffer, "??X" from anywhere. */
#ifdef RELAXED_HEAD
	:: atomic { sent??HEAD,value -> COMMIT(HEAD) }
#else
	:: atomic { sent?HEAD,value -> COMMIT(HEAD) }
#endif
	:: atomic { sent??CLOSED,value -> COMMIT(CLOSED) } /* the last publish fenced */
	:: atomic { sent??WAIT_SPACE,value -> COMMIT(WAIT_SPACE) }
	:: atomic { sent??5,value -> COMMIT(SLOT) }
#if CAPACITY > 1
	:: atomic { sent??6,value -> COMMIT(SLOT + 1) }
#endif
	:: atomic { received?TAIL,value -> COMMIT(TAIL) }
	:: atomic { received??WAIT_RECORDS,value -> COMMIT(WAIT_RECORDS) }
#endif
	od
}

#if defined(SENDER_DIES) || defined(RECEIVER_DIES)
active proctype killer()
{
#ifdef SENDER_DIES
	kill_sender = true
#endif
#ifdef RECEIVER_DIES
	kill_receiver = true
#endif
}
#endif

/* Stores that were executed complete; the choice to lose them covers more
 * deaths than there are.  EOF comes after, as the kernel closes the socket. */
inline die(own, gone)
{
	atomic {
		if
		:: do
		   :: nempty(own) -> own?_,_
		   :: empty(own) -> break
		   od
		:: empty(own)
		fi;
		gone = true
	}
}

/* ---- the protocol ---- */

#define FENCE(own) empty(own)

#ifdef EPOCH_REUSED
#define NEXT(epoch) epoch = 1 - epoch
#else
#define NEXT(epoch) epoch++
#endif

inline ring(inbox, peer_drains)
{
	if
	:: atomic { nfull(inbox) -> inbox!1 }
	:: full(inbox) || peer_drains
#ifdef BELL_LOST
	:: true /* an error other than "full" was taken for it */
#endif
	fi
}

#ifdef RUNG_STICKY
#define NOT_YET(e, rung) (rung == 0)
#elif defined(RING_ALWAYS)
#define NOT_YET(e, rung) true
#else
#define NOT_YET(e, rung) (e != rung)
#endif

/* After a publish and its fence: wake the peer if it sleeps, once per sleep.
 * Epoch number e is the ((e + 1) / 2)th sleep of the peer. */
inline wake(peer_epoch, inbox, peer_drains)
{
	e = mem[peer_epoch];
	if
	:: (e & 1) && NOT_YET(e, rung) ->
		rung = e;
		rings++;
#ifndef EPOCH_REUSED
		assert(rings <= (e + 1) / 2);
#endif
		ring(inbox, peer_drains)
	:: else
	fi;
	e = 0
}

/* The peer's EOF is noted before the shared memory is looked at again. */
inline sleep(own, epoch_at, inbox, drains, peer_gone)
{
#ifdef DRAIN_BEFORE_POLL
	do
	:: nempty(inbox) -> inbox?_
	:: empty(inbox) -> break
	od;
#endif
	if
	:: nempty(inbox) || peer_gone
	:: atomic { spurious > 0 -> spurious-- }
	fi;
	NEXT(epoch);
	own!epoch_at,epoch;
	atomic {
		gone = peer_gone;
		drains = true;
#ifndef NO_DRAIN
		do
		:: nempty(inbox) -> inbox?_
		:: empty(inbox) -> break
		od
#endif
	};
	drains = false
}

active proctype sender()
{
	byte w, t, e, epoch, rung, rings, n;
	byte spurious = SPURIOUS;
	bool gone;
	{
		do
		:: w == RECORDS -> break
		:: else ->
			t = mem[TAIL];
			assert(t <= w && w - t <= CAPACITY);
			if
			:: w - t < CAPACITY -> /* write one or more, publish once */
				n = 1;
#if CAPACITY > 1
				if
				:: w + 1 < RECORDS && w + 1 - t < CAPACITY -> n = 2
				:: true
				fi;
#endif
				t = 0;
#ifdef PUBLISH_BEFORE_WRITE
				sent!HEAD,w + n;
#endif
				do
				:: n > 0 ->
					sent!SLOT + w % CAPACITY,w + 1;
					w++;
					n--
				:: else -> break
				od;
#ifndef PUBLISH_BEFORE_WRITE
				sent!HEAD,w;
#endif
#ifndef NO_FENCE_PUBLISH
				FENCE(sent);
#endif
#ifdef INTERRUPTED
				if
				:: true
				:: wake(WAIT_RECORDS, to_receiver, receiver_drains)
				fi
#else
				wake(WAIT_RECORDS, to_receiver, receiver_drains)
#endif
			:: else -> /* full */
				if
				:: gone -> break
				:: else
				fi;
				NEXT(epoch);
				sent!WAIT_SPACE,epoch;
#ifndef NO_FENCE_WAIT_SPACE
				FENCE(sent);
#endif
#ifndef NO_RECHECK_SPACE
				t = mem[TAIL];
#endif
				if
				:: w - t < CAPACITY ->
					NEXT(epoch);
					sent!WAIT_SPACE,epoch
				:: else ->
					sleep(sent, WAIT_SPACE, to_sender, sender_drains, receiver_gone)
				fi
			fi
		od;
		sent!CLOSED,1;
#ifndef NO_FENCE_CLOSE
		FENCE(sent);
#endif
#ifndef NO_BELL_CLOSE
		e = mem[WAIT_RECORDS];
		if
		:: e & 1 -> ring(to_receiver, receiver_drains)
		:: else
		fi;
#endif
#ifndef EOF_WITHHELD
		sender_gone = true
#endif
	} unless {
		kill_sender -> die(sent, sender_gone)
	}
}

active proctype receiver()
{
	byte r, h, e, epoch, rung, rings, value;
	byte spurious = SPURIOUS;
	bool gone, closed;
	{
		do
		::
#ifdef RELAXED_LOAD
			value = mem[SLOT + r % CAPACITY]; /* as a processor may, without acquire */
#endif
#ifndef HEAD_BEFORE_CLOSED
			closed = mem[CLOSED];
#endif
			h = mem[HEAD];
			assert(r <= h && h - r <= CAPACITY);
#ifdef HEAD_BEFORE_CLOSED
			closed = mem[CLOSED];
#endif
			if
#ifdef END_ON_CLOSED
			:: closed -> break
			:: !closed && h != r ->
#elif defined(END_ON_EOF)
			:: gone -> break
			:: !gone && h != r ->
#else
			:: h != r -> /* take one or more, free once */
#endif
				do
				::
#ifdef FREE_BEFORE_READ
					received!TAIL,r + 1;
#endif
#ifndef RELAXED_LOAD
					value = mem[SLOT + r % CAPACITY];
#endif
					assert(value == r + 1);
					r++;
					if
					:: break
					:: r != h
					fi
				od;
				atomic { h = 0; value = 0; closed = false };
#ifndef FREE_BEFORE_READ
				received!TAIL,r;
#endif
#ifndef NO_FENCE_FREE
				FENCE(received);
#endif
				wake(WAIT_SPACE, to_sender, sender_drains)
			:: h == r && (closed || gone) -> break
			:: h == r && !closed && !gone -> /* empty */
				NEXT(epoch);
				received!WAIT_RECORDS,epoch;
#ifndef NO_FENCE_WAIT_RECORDS
				FENCE(received);
#endif
#ifndef NO_RECHECK_RECORDS
#ifndef NO_RECHECK_CLOSED
				closed = mem[CLOSED];
#endif
				h = mem[HEAD];
#endif
				if
				:: h != r || closed ->
					NEXT(epoch);
					received!WAIT_RECORDS,epoch
				:: else ->
					sleep(received, WAIT_RECORDS, to_receiver, receiver_drains, sender_gone)
				fi
			fi
		od;
		assert(closed || kill_sender); /* an orderly end is not taken for a death */
		assert(r == mem[HEAD]);        /* all that was published was read */
		assert(r == RECORDS || kill_sender)
	} unless {
		kill_receiver -> die(received, receiver_gone)
	}
}
