/*
 * A ring of slots: records of one size, each in a slot of that size.
 */
#include "ends.h"

/* Records in a ring wrap at most once. */
static void copy_in(struct ipcq_sender *s, uint64_t head, const char *from, uint64_t n)
{
    size_t size = s->slot_size;
    uint64_t at = head & (s->capacity - 1);
    uint64_t first = n < s->capacity - at ? n : s->capacity - at;
    memcpy(s->own->slots + at * size, from, first * size);
    memcpy(s->own->slots, from + first * size, (n - first) * size);
}

static void copy_out(const struct ipcq_receiver *r, uint64_t tail, char *into, uint64_t n)
{
    size_t size = r->slot_size;
    uint64_t at = tail & (r->capacity - 1);
    uint64_t first = n < r->capacity - at ? n : r->capacity - at;
    memcpy(into, r->peer->slots + at * size, first * size);
    memcpy(into + first * size, r->peer->slots, (n - first) * size);
}

int ipcq_push(ipcq_sender *s, const char *record)
{
    int result = sender_state(s);
    if (result != IPCQ_DONE)
        return result;
    uint64_t head = atomic_load_explicit(&s->head, memory_order_relaxed);
    result = make_space(s, head, 1);
    if (result == IPCQ_FULL)
        count(&s->own->sending.refused);
    if (result != IPCQ_DONE)
        return result;
    copy_in(s, head, record, 1);
    publish(s, head + 1, 1);
    return IPCQ_DONE;
}

int ipcq_push_pieces(ipcq_sender *s, const struct ipcq_piece *pieces, uint64_t count,
                     uint64_t *done)
{
    *done = 0;
    int result = sender_state(s);
    if (result != IPCQ_DONE)
        return result;
    uint64_t head = atomic_load_explicit(&s->head, memory_order_relaxed), start = head;
    for (uint64_t i = 0; i < count && result == IPCQ_DONE; i++) {
        uint64_t n = pieces[i].size;
        result = make_space(s, head, n);
        if (result == IPCQ_FULL)
            n = s->capacity - (head - s->tail);
        if (result == IPCQ_CORRUPT)
            break;
        copy_in(s, head, pieces[i].at, n);
        head += n;
    }
    *done = head - start;
    if (head != start)
        publish(s, head, 1);
    return head != start && result == IPCQ_FULL ? IPCQ_DONE : result;
}

int ipcq_pop(ipcq_receiver *r, char *into, uint64_t max, uint64_t delivered, uint64_t *count_out)
{
    *count_out = 0;
    if (forked(r->forks, r->generation))
        return IPCQ_FORKED;
    uint64_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    if (tail != delivered) {
        *count_out = tail - delivered;
        return IPCQ_AGAIN;
    }
    if (r->corrupt)
        return IPCQ_CORRUPT;
    if (r->head - tail < max &&
        (r->head == tail ? look_beyond(r, tail, tail) : look_for_records(r, tail)) != IPCQ_DONE)
        return IPCQ_CORRUPT;
    uint64_t n = r->head - tail;
    if (n > max)
        n = max;
    if (n == 0)
        return IPCQ_EMPTY;
    copy_out(r, tail, into, n);
    tail += n;
    give_back(r, tail);
    *count_out = n;
    return IPCQ_DONE;
}
