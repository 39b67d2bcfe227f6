/*
 * The peer dies, and the socket does not say so: a forked grandchild holds it open.
 * The survivor has a second descriptor, a pidfd of the peer, readable once the peer
 * is dead.  He receives all that was published, with its descriptors, and all that
 * was sent through the socket; then he learns how it ended, and right.
 *
 * When the pidfd is readable
 *   read what has come through the socket, but no more than was there then
 *   look at `closed`, and note how it ended
 *   look at the ring once more; what is there comes first
 *
 * Memory is sequentially consistent here; store buffers are in wake.pml, and what
 * a process has stored is there when its pidfd becomes readable.  The socket, if
 * nobody else holds it, ends before that.  Whoever reads the socket takes one
 * message at a time: recvmsg() stops behind each that carries descriptors.
 *
 * OTHER_READS: another thread of the survivor may read the socket, and note the end,
 * whenever this one does not (Endpoint.turn).
 * FLOOD: the grandchild writes into the socket, without end.
 * LIVE: whatever comes, a survivor who may run learns of the death.
 */

#ifndef RECORDS
#define RECORDS 2
#endif
#ifndef CAPACITY
#define CAPACITY 2
#endif
#ifndef MESSAGES
#define MESSAGES 1 /* of the peer's application */
#endif
#ifndef ROOM
#define ROOM 3 /* messages that the socket holds */
#endif

#define BELL 0
#define FDS 1
#define MESSAGE 2
#define FLOODED 3

#define RUNS 0
#define END_OF_STREAM 1
#define PEER_DIED 2

byte head, tail, wait_records;
bool closed;

chan inbox = [ROOM] of { byte };
bool eof;   /* of the socket; seen when the inbox is empty */
bool dead;  /* the peer's pidfd is readable */
bool gone;  /* the peer really is */
bool shot;  /* and not in good order */
byte messages_sent;

byte attached; /* descriptors that were read, for records not received yet */
byte messages;
byte ended = RUNS; /* noted */
bool reading;      /* a thread reads the socket */
bool told;         /* the survivor has learnt of it */
byte rings;

#ifdef LIVE
ltl death_is_seen { [] (gone -> <> told) }
#endif

/* ---- the peer ---- */

inline die()
{
	gone = true;
	if
	:: eof = true
	:: true /* withheld */
	fi;
	dead = true
}

active proctype peer()
{
	byte w, e, rung;
	{
		do
		:: w == RECORDS -> break
		:: else ->
			if
			:: messages_sent < MESSAGES ->
				atomic { nfull(inbox) -> inbox!MESSAGE; messages_sent++ }
			:: true
			fi;
			w - tail < CAPACITY;
#ifdef ATTACHED
			inbox!FDS;
#endif
			w++;
			head = w;
			e = wait_records;
			if
			:: (e & 1) && e != rung ->
				rung = e;
				rings++;
				assert(rings <= (e + 1) / 2);
				if
				:: nfull(inbox) -> inbox!BELL
				:: full(inbox)
				fi
			:: else
			fi
		od;
		closed = true;
		if
		:: nfull(inbox) -> inbox!BELL
		:: full(inbox)
		fi;
		eof = true; /* shutdown() ends it, whoever else holds it */
		gone = true;
		dead = true
	}
#ifndef ORDERLY
	unless {
		shot -> die()
	}
#endif
}

#ifndef ORDERLY
active proctype killer()
{
	shot = true
}
#endif

#ifdef WRONG_PROCESS
/* Who connected, passed the socket on to the peer, and leaves. */
active proctype connector()
{
	dead = true
}
#endif

#ifdef FLOOD
/* Has the socket from the peer, but not the descriptors and the rules. */
active proctype grandchild()
{
	gone;
end:	do
	:: nfull(inbox) -> inbox!FLOODED
	od
}
#endif

/* ---- the survivor ---- */

inline take()
{
	if
	:: atomic { inbox?BELL }
	:: atomic { inbox?FLOODED }
	:: atomic { inbox?FDS -> attached++ }
	:: atomic { inbox?MESSAGE -> messages++ }
	:: empty(inbox)
	fi
}

inline note()
{
#ifndef CLOSED_EARLY
	saw = closed;
#endif
	atomic {
		if
		:: ended != RUNS
		:: ended == RUNS && saw -> ended = END_OF_STREAM
		:: ended == RUNS && !saw -> ended = PEER_DIED
		fi;
		saw = false
	}
}

/* As `reading`. */
inline read_socket()
{
#ifdef CLOSED_EARLY
	saw = closed;
#endif
	if
#ifndef NO_PIDFD
	:: dead ->
#ifdef NOTE_BEFORE_DRAIN
		note()
#else
#ifdef DRAIN_ONCE
		n = 1;
#else
		n = len(inbox);
#endif
#ifdef DRAIN_UNTIL_EMPTY
		do
		:: nempty(inbox) -> take()
		:: empty(inbox) -> break
		od;
		n = 0;
#endif
		do
		:: n > 0 -> take(); n--
		:: else -> break
		od;
#ifdef DEATH_NOT_NOTED
		if
		:: empty(inbox) && eof -> note()
		:: nempty(inbox) || !eof
		fi
#else
		note()
#endif
#endif
	:: !dead ->
#else
	:: true ->
#endif
		if
		:: nempty(inbox) -> take()
		:: empty(inbox) && eof -> note()
		:: empty(inbox) && !eof
		fi
	fi
}

#ifdef NO_PIDFD
#define WAKES (nempty(inbox) || eof)
#else
#define WAKES (nempty(inbox) || eof || dead)
#endif

#ifdef OTHER_READS
active proctype other()
{
	byte n;
	bool saw;
	do
	:: atomic { !reading && ended == RUNS && WAKES -> reading = true };
		read_socket();
		reading = false
	:: told -> break
	od
}
#endif

active proctype survivor()
{
	byte r, h, n, over;
	bool saw;

	do
	::
#ifndef OVER_AFTER_LOOK
		over = ended; /* before the last look */
#endif
		h = head;
#ifdef OVER_AFTER_LOOK
		over = ended;
#endif
		if
		:: h != r ->
#ifdef ATTACHED
			if
			:: attached == 0 -> /* they were sent before it was published */
				atomic { !reading -> reading = true };
#ifdef ENDED_READS_NOTHING
				n = (ended == RUNS -> len(inbox) : 0);
#else
				n = len(inbox);
#endif
				do
				:: n > 0 && attached == 0 -> take(); n--
				:: else -> break
				od;
				n = 0;
				reading = false
			:: else
			fi;
			assert(attached > 0);
			attached--;
#endif
			r++;
			tail = r;
			h = 0
		:: h == r && over != RUNS -> break
		:: h == r && over == RUNS ->
			h = 0;
			atomic { !reading -> reading = true; wait_records++ };
			if
			:: head != r || ended != RUNS
			:: else ->
				WAKES;
				read_socket()
			fi;
			atomic { reading = false; wait_records++ };
#ifdef NO_LAST_LOOK
			if
			:: ended != RUNS -> break
			:: else
			fi
#endif
		fi
	od;
	told = true;
	assert(gone || closed);                      /* nobody alive is taken for dead */
	assert(shot || ended == END_OF_STREAM);      /* an orderly end is none */
	assert(ended == END_OF_STREAM || !closed);
	assert(r == head);                           /* all that was published was received */
	assert(messages == messages_sent)            /* and all that was sent */
}
