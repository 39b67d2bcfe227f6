/*
 * A ring of frames: messages of any length, each behind a header with its length.
 *
 * The ring is mapped twice in a row, so a frame is always in one piece, and there is no padding to
 * skip at the end.  The peer can write anything into a header: so it is copied out once, the copy
 * is checked against the published index, and only the copy is used.
 */
#include "ends.h"

enum { HEADER = sizeof(struct ipcq_frame), ALIGN = IPCQ_FRAME_ALIGN };
static_assert(HEADER == ALIGN, "a header fills the alignment, so it never wraps either");

/* Bytes of ring that a frame occupies; `size` is at most 2^32. */
static uint64_t extent(uint64_t size)
{
    return HEADER + ((size + ALIGN - 1) & ~(uint64_t)(ALIGN - 1));
}

uint64_t ipcq_frame_extent(uint64_t size)
{
    return extent(size);
}

/* -- sending ------------------------------------------------------------------------------ */

static void write_frame(struct ipcq_sender *s, uint64_t head, const struct ipcq_frame *frame,
                        const char *payload)
{
    char *at = (char *)s->own->slots + (head & (s->capacity - 1));
    memcpy(at, frame, HEADER);
    if (payload)
        memcpy(at + HEADER, payload, frame->size);
}

int ipcq_frame_commit(ipcq_sender *s, const struct ipcq_frame *frame, int wake)
{
    int result = sender_state(s);
    if (result != IPCQ_DONE)
        return result;
    uint64_t head = atomic_load_explicit(&s->head, memory_order_relaxed);
    write_frame(s, head, frame, NULL);
    s->published.messages++;
    publish(s, head + extent(frame->size), wake);
    return IPCQ_DONE;
}

static int send_fds(struct ipcq_sender *s, const int *fds, size_t n)
{
    alignas(struct cmsghdr) char control[CMSG_SPACE(IPCQ_MAX_FRAME_FDS * sizeof(int))] = {0};
    unsigned char message[2] = {IPCQ_OPCODE_FDS, (unsigned char)n};
    struct iovec bytes = {message, sizeof message};
    struct msghdr m = {.msg_iov = &bytes,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = CMSG_SPACE(n * sizeof(int))};
    struct cmsghdr *c = (void *)control;
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n * sizeof(int));
    memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    for (;;) {
        if (sendmsg(s->bell.socket, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            return IPCQ_DONE;
        /* ETOOMANYREFS: this user has more descriptors in flight than it may open. */
        if (errno == EAGAIN || errno == ETOOMANYREFS)
            return IPCQ_STUCK;
        if (errno != EINTR)
            return errno == EPIPE || errno == ECONNRESET ? IPCQ_GONE : IPCQ_ERROR;
    }
}

uint64_t ipcq_frame_units(ipcq_sender *s, const struct ipcq_frame *frame)
{
    uint64_t units = extent(frame->size);
    if (frame->fds + frame->regions == 0 || s->attached_count < IPCQ_MAX_ATTACHED)
        return units;
    /* The oldest of the frames under way must have been taken: tail must have reached its end. */
    uint64_t end = s->attached[s->attached_count % IPCQ_MAX_ATTACHED];
    uint64_t behind = atomic_load_explicit(&s->head, memory_order_relaxed) - end;
    uint64_t until = behind < s->capacity ? s->capacity - behind : 0;
    return units > until ? units : until;
}

int ipcq_frame_push(ipcq_sender *s, const struct ipcq_frame *frame, const char *payload,
                    const int *fds)
{
    uint64_t head = atomic_load_explicit(&s->head, memory_order_relaxed);
    int result = sender_state(s);
    if (result == IPCQ_DONE)
        result = make_space(s, head, ipcq_frame_units(s, frame));
    if (result == IPCQ_FULL)
        count(&s->own->sending.refused);
    /* Space first: it stays, as only this side takes any.  So once the descriptors are on
     * their way, nothing can keep the frame from following them. */
    if (result == IPCQ_DONE && frame->fds + frame->regions)
        result = send_fds(s, fds, (size_t)(frame->fds + frame->regions));
    if (result != IPCQ_DONE)
        return result;
    write_frame(s, head, frame, payload);
    head += extent(frame->size);
    if (frame->fds + frame->regions)
        s->attached[s->attached_count++ % IPCQ_MAX_ATTACHED] = head;
    s->published.messages++;
    publish(s, head, 1);
    return IPCQ_DONE;
}

int ipcq_frame_send(ipcq_sender *s, const struct ipcq_frame *frame, const char *payload,
                    const int *fds, struct ipcq_use *use)
{
    int result = ipcq_frame_push(s, frame, payload, fds);
    if (result == IPCQ_DONE && use != NULL) {
        struct ipcq_outside outside = {0};
        memcpy(&outside, payload, frame->size < sizeof outside ? frame->size : sizeof outside);
        s->published.outside += outside.size;
        use->times++;
        use->end = atomic_load_explicit(&s->head, memory_order_relaxed);
    }
    return result;
}

int ipcq_frame_push_pieces(ipcq_sender *s, const struct ipcq_piece *pieces,
                           const struct ipcq_label *labels, uint64_t n, uint64_t *done)
{
    *done = 0;
    uint64_t head = atomic_load_explicit(&s->head, memory_order_relaxed);
    int result = sender_state(s);
    if (result != IPCQ_DONE)
        return result;
    uint64_t i;
    for (i = 0; i < n; i++) {
        const struct ipcq_piece *piece = &pieces[i];
        struct ipcq_frame plain = {.size = (uint32_t)piece->size};
        result = make_space(s, head, extent(plain.size));
        if (result != IPCQ_DONE)
            break;
        if (labels == NULL) {
            write_frame(s, head, &plain, piece->at); /* which the compiler has in registers */
        } else {
            struct ipcq_frame tagged = {
                .size = plain.size, .tag = labels[i].tag, .flags = (uint16_t)labels[i].flags};
            write_frame(s, head, &tagged, piece->at);
        }
        head += extent(plain.size);
    }
    s->published.messages += i;
    if (i > 0)
        publish(s, head, 1);
    *done = i;
    return i > 0 && result == IPCQ_FULL ? IPCQ_DONE : result;
}

/* -- counting ----------------------------------------------------------------------------- */

/* Count the frames from index `at` to `head`, at most `most`.  Either index, or the frames, may be
 * the peer's: none of them is believed. */
static void tally(const struct ipcq_segment *segment, uint64_t capacity, uint64_t at, uint64_t head,
                  uint64_t most, struct ipcq_tally *into)
{
    *into = (struct ipcq_tally){0, 0};
    while (at % ALIGN == 0 && head - at >= HEADER && head - at <= capacity &&
           into->messages < most) {
        const _Atomic uint64_t *words =
            (const _Atomic uint64_t *)(segment->slots + (at & (capacity - 1)));
        struct ipcq_frame frame;
        uint64_t header[2] = {atomic_load_explicit(&words[0], memory_order_relaxed),
                              atomic_load_explicit(&words[1], memory_order_relaxed)};
        memcpy(&frame, header, sizeof frame);
        uint64_t units = extent(frame.size);
        if (units > head - at)
            break;
        if (frame.flags & IPCQ_OUTSIDE && frame.size >= sizeof(struct ipcq_outside))
            into->outside += atomic_load_explicit(&words[2], memory_order_relaxed);
        into->messages++;
        at += units;
    }
}

void ipcq_frame_sender_tally(const ipcq_sender *s, struct ipcq_tally *published,
                             struct ipcq_tally *left)
{
    *published = s->published;
    tally(s->own, s->capacity, s->tail, atomic_load_explicit(&s->head, memory_order_relaxed),
          UINT64_MAX, left);
}

void ipcq_frame_receiver_tally(const ipcq_receiver *r, uint64_t from, uint64_t most,
                               struct ipcq_tally *waiting)
{
    tally(r->peer, r->capacity, from, r->head, most, waiting);
}

/* -- receiving ---------------------------------------------------------------------------- */

/* Copy out and check the header at index `from`, where `available` bytes are published. */
static int read_header(struct ipcq_receiver *r, uint64_t from, uint64_t max_size,
                       struct ipcq_frame *frame)
{
    const _Atomic uint64_t *at =
        (const _Atomic uint64_t *)(r->peer->slots + (from & (r->capacity - 1)));
    uint64_t words[2] = {atomic_load_explicit(&at[0], memory_order_relaxed),
                         atomic_load_explicit(&at[1], memory_order_relaxed)};
    memcpy(frame, words, HEADER);
    uint64_t available = r->head - from;
    uint64_t most = frame->flags & IPCQ_OUTSIDE ? sizeof(struct ipcq_outside) : max_size;
    if (frame->size > most || frame->reserved != 0 || (frame->flags & ~IPCQ_KNOWN_FLAGS) ||
        frame->fds + frame->regions > IPCQ_MAX_FRAME_FDS || available < HEADER ||
        extent(frame->size) > available) {
        r->corrupt = 1;
        return IPCQ_CORRUPT;
    }
    return IPCQ_DONE;
}

int ipcq_frame_look(ipcq_receiver *r, uint64_t from, uint64_t max_size, struct ipcq_frame *frame,
                    const char **at)
{
    int result = look_from(r, from);
    if (result != IPCQ_DONE)
        return result;
    *at = (const char *)r->peer->slots + (from & (r->capacity - 1)) + HEADER;
    return read_header(r, from, max_size, frame);
}
