/* disk - names and data, volatile and durable
 *
 * A number is an inode of mess; each of its files is a name here. The value of a name is the message
 * whose file it leads to, 0 is no such name. The variable is what running programs see; beside it, with
 * `_`, stands the set of values (one bit each) that a power cut may leave: every value since the last
 * sync. Each name keeps its own set: whatever a cut does to one says nothing about another.
 *
 * When no cut is left to come (`cuts` is 0) nobody needs the sets, and they stay 0: fewer states.
 */

typedef Number {
    /* names */
    unsigned pend : 1; unsigned pend_ : 2; /* pid/… that leads to inode N */
    unsigned mess : 1; unsigned mess_ : 2; /* mess/S/N: if it is there, it leads to inode N */
    unsigned intd : 2; unsigned intd_ : 4;
    unsigned todo : 2; unsigned todo_ : 4;
    unsigned info : 2; unsigned info_ : 4;
    unsigned list : 2; unsigned list_ : 4; /* local/S/N or remote/S/N */
    unsigned bnc  : 2; unsigned bnc_  : 4; /* bounce/N */
    /* what inode N holds: a whole message, or 0: empty, torn */
    unsigned data : 2; unsigned data_ : 4;
    unsigned lock : 1; /* a writer holds the lock on it */

    /* qmail-send's memory, lost with it */
    unsigned tp   : 5; /* the next step of preprocessing or of the short way */
    unsigned why  : 2; /* what the removal of traces is for */
    unsigned sp   : 5; /* the next step of delivery and of the end */
    unsigned m    : 2; /* the message that preprocessing reads in todo/N */
    unsigned sm   : 2; /* the message that is delivered or ended */
    unsigned r    : 1; /* the recipient being served */
    unsigned quick : 1; /* delivered straight from todo/N */
    unsigned done : 2; /* there: recipients that are finished */
    unsigned unproven : 1;
    unsigned aside    : 1;
    unsigned orphan   : 1; /* info without mess */
    unsigned askt : 1; unsigned askf : 1; /* requests in line: todo/N, foop/N */
};
Number q[NUMBERS + 1]; /* q[0] is not used */

/* The files of a message that are not mess. A dirty one may be torn by a power cut. */
typedef Message {
    unsigned env_dirty  : 1; unsigned env_torn  : 1;
    unsigned info_dirty : 1; unsigned info_torn : 1;
    unsigned list_dirty : 1; unsigned list_torn : 1;
    unsigned marks : RCPTS; unsigned marks_dirty : RCPTS; /* done marks in its list */
    unsigned text  : RCPTS; unsigned text_ : RCPTS;       /* of whom its bounce speaks; the same, durable */
    unsigned text_dirty : 1;
    /* what became of it */
    unsigned linked  : 1; /* todo/N was linked: the message was whole */
    unsigned ack     : 1; /* the caller was told 0 */
    unsigned refused : 1; /* the caller was told something else */
    unsigned dlv  : RCPTS;  /* delivered to */
    unsigned told : RCPTS;  /* the sender got a bounce about */
};
Message msg[MESSAGES + 1]; /* msg[0] is not used */

unsigned cuts   : 2; /* power cuts still to come */
unsigned faults : 2; /* kills, hang-ups, failed syncs, clock jumps still to come */
bit again;           /* a delivery may happen a second time: there was a cut, or qmail-send was killed */

#define SET(n, f, v)  q[n].f = v; q[n].f##_ = (cuts -> q[n].f##_ | (1 << (v)) : 0)
#define SYNC(n, f)    q[n].f##_ = (cuts -> 1 << q[n].f : 0)
#ifdef PIDS
#define SET_PEND(n, v) SET(n, pend, v)
#else
#define SET_PEND(n, v) q[n].pend = v
#endif
#define DIRTY(m, f)   msg[m].f##_dirty = (cuts -> 1 : 0); msg[m].f##_torn = 0
#define CLEAN(m, f)   msg[m].f##_dirty = 0

/* One name after a power cut. */
#define LEFT(n, f) \
    if \
    :: q[n].f##_ & 1 -> q[n].f = 0 \
    :: q[n].f##_ & 2 -> q[n].f = 1 \
    :: q[n].f##_ & 4 -> q[n].f = 2 \
    :: q[n].f##_ & 8 -> q[n].f = 3 \
    fi; \
    SYNC(n, f)
#define LEFT1(n, f) /* a name that leads nowhere else */ \
    if \
    :: q[n].f##_ & 1 -> q[n].f = 0 \
    :: q[n].f##_ & 2 -> q[n].f = 1 \
    fi; \
    SYNC(n, f)
#define LEFT_DATA(m, f) \
    if \
    :: msg[m].f##_dirty -> msg[m].f##_torn = 1 \
    :: true \
    fi; \
    msg[m].f##_dirty = 0

inline disk_after_cut() {
    cuts--; /* first: with the last cut the sets are done with */
    for (k : 1 .. NUMBERS) {
#ifdef PIDS
        LEFT1(k, pend);
#else
        q[k].pend = 0; /* a leftover in pid only keeps its number busy until it is swept */
#endif
        LEFT1(k, mess);
        LEFT(k, data); LEFT(k, intd); LEFT(k, todo); LEFT(k, info); LEFT(k, list); LEFT(k, bnc);
    }
    for (k : 1 .. MESSAGES) {
        LEFT_DATA(k, env); LEFT_DATA(k, info); LEFT_DATA(k, list);
        do /* a mark that was not synced may be there or not, each for itself */
        :: msg[k].marks_dirty & 1 -> msg[k].marks_dirty = msg[k].marks_dirty & 2;
            if
            :: msg[k].marks = msg[k].marks & 2
            :: true
            fi
        :: !(msg[k].marks_dirty & 1) && (msg[k].marks_dirty & 2) -> msg[k].marks_dirty = 0;
            if
            :: msg[k].marks = msg[k].marks & 1
            :: true
            fi
        :: msg[k].marks_dirty == 0 -> break
        od;
        if
        :: msg[k].text_dirty -> msg[k].text = msg[k].text_
        :: msg[k].text_dirty -> msg[k].text = 0
        :: true
        fi;
        msg[k].text_ = (cuts -> msg[k].text : 0);
        msg[k].text_dirty = 0;
    }
    k = 0;
}
