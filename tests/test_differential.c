/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The same calls to stock virtlockd and to lockd, side by side. Every answer must agree in status, code, domain, level,
 * str1, int1 and int2, and lockd's message must begin with stock's; the file that the call is about must be there
 * afterwards on both sides or on none.
 *
 * Deliberate differences live in one table below. A call says which of its oddities (WHY_*) may make a difference; the
 * table says for each oddity what stock answers, what lockd answers, and the reason. An unlisted difference fails, a row
 * that nothing hit fails, and docs/differences.md must be what the table says.
 *
 * Each daemon has a folder of its own, $WORK/stock and $WORK/lockd, with the same files in it; '@' in a name stands for
 * that folder. Both run there, so that relative names mean the same, too.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "harness.h"
#include "wire.h"

#define STOCK_SOCKET "/run/libvirt/virtlockd-sock"
#define CALLS_WANTED 400
#define SENTINEL_PROCEDURE 98 /* unknown to both: its answer tells that nothing more comes for the call before it */
#define NUL_MARK '\x1e'       /* stands for a NUL byte in a name */
#define PAYLOAD_MAX (256U * 1024)

#define SHARED VIRTLOCK_ACQUIRE_SHARED
#define AUTOCREATE VIRTLOCK_ACQUIRE_AUTOCREATE

enum { STOCK, LOCKD, SIDES };
static const char *const side_names[SIDES] = { "stock", "lockd" };

/* ---- the table of differences ---- */

typedef enum Why {
        WHY_NONE = 0,
        WHY_RELATIVE = 1 << 0,
        WHY_SPELLING = 1 << 1,
        WHY_LEASE_NAME = 1 << 2,
        WHY_LEASE_LINK = 1 << 3,
        WHY_DELETE_LINK = 1 << 4,
        WHY_ALIAS = 1 << 5,
        WHY_REPLACED = 1 << 6,
        WHY_KIND = 1 << 7,
        WHY_CONTENT = 1 << 8,
        WHY_DANGLING = 1 << 9,
        WHY_DIRECTORY = 1 << 10,
        WHY_NEW_FILE = 1 << 11,
        WHY_LONG = 1 << 12,
        WHY_NUL = 1 << 13,
        WHY_TRAILING = 1 << 14,
        WHY_SIZE = 1 << 15,
        WHY_TYPE = 1 << 16,
        WHY_KEEPALIVE = 1 << 17,
        WHY_IDENTITY = 1 << 18,
        WHY_NO_PROCESS = 1 << 19,
        WHY_OWNER_NAME = 1 << 20,
        WHY_PID_ONLY = 1 << 21,
        WHY_UNCONFIRMED = 1 << 22,
        WHY_HELD_TWICE = 1 << 23,
        WHY_NO_CONNECTION = 1 << 24,
} Why;

/* stock and lockd are lists, separated by "; ": each answer of the one belongs to the other's at the same place. */
typedef struct Difference {
        Why why;
        const char *what, *stock, *lockd, *reason;
} Difference;

static Difference differences[] = {
        { WHY_RELATIVE,
          "A relative name in the default lockspace (the empty one, too), or a relative lockspace",
          "OK; 38/51 ENOENT; 38/51 ENAMETOOLONG; 38/0 ENOENT; OK",
          "38/51 ENOENT; 38/51 ENOENT, other words; 38/51 ENOENT; 38/51 ENOENT; 1/51",
          "virtlockd takes it as relative to the folder that it happens to run in, which the client cannot know." },
        { WHY_SPELLING,
          "A lockspace spelled with `//`, or with a `/` at its end",
          "1/7; 1/7; 87/51; OK; OK",
          "OK; 87/51; OK; 1/7; 87/51",
          "It is one directory, so it is one lockspace, and a lease in it is locked and released under either "
          "spelling." },
        { WHY_LEASE_NAME,
          "A lease name with `/` in it, `.`, `..`, or an empty one",
          "OK; 38/51 EISDIR; 38/0 EISDIR",
          "38/51 EINVAL; 38/51 EINVAL; 38/51 EINVAL",
          "A lease is a file in the lockspace's own directory: `../x` must not lead out of it." },
        { WHY_LEASE_LINK,
          "A lease file that is a symbolic link",
          "OK; OK",
          "38/51 ELOOP; 38/0 ELOOP",
          "A link can lead out of the lockspace, to any file of the host." },
        { WHY_DELETE_LINK,
          "DELETE_RESOURCE of a symbolic link",
          "OK",
          "38/51 ELOOP",
          "Only a file that was locked first is removed, and a link cannot be locked." },
        { WHY_ALIAS,
          "A file that is locked already under another name: a hard link, a symbolic link, `//`, another lockspace",
          "OK",
          "87/51",
          "A file is one lease whatever it is called. virtlockd grants it twice, and the first release ends both "
          "locks." },
        { WHY_REPLACED,
          "SHARED, when the file behind a name that is locked shared was replaced",
          "OK",
          "87/51",
          "virtlockd counts the new owner to the lock on the old file, so that the new one stays unlocked." },
        { WHY_KIND,
          "A file that is neither a regular file nor a block device",
          "OK; 38/51 ENXIO; 38/0 ENXIO",
          "38/51 EINVAL; 38/51 EINVAL; 38/51 EINVAL",
          "To open a device or a FIFO can have effects, or wait for ever." },
        { WHY_CONTENT,
          "Release of an AUTOCREATE lease, or DELETE_RESOURCE, when the file is not empty and has no record of "
          "lockd's",
          "OK, file gone; OK",
          "OK, file there; 29/51",
          "It may be an image: virtlockd deletes it." },
        { WHY_DANGLING,
          "AUTOCREATE or CREATE_RESOURCE where a symbolic link leads nowhere",
          "OK; OK",
          "38/51 ENOENT; 38/0 ENOENT",
          "A file is created only where its name says, not at the other end of a link." },
        { WHY_DIRECTORY,
          "CREATE_LOCKSPACE of a directory that cannot be made",
          "38/51 ENOENT; 38/51 ENOTDIR; 38/51 ENAMETOOLONG; 1/7",
          "OK; OK; OK; 38/51 ENOENT",
          "libvirtd ends when its driver gets an error here. The error comes when something is to be locked there; "
          "only what can never become a directory (a file is in its way) is refused at once." },
        { WHY_NEW_FILE,
          "NEW of a path that is no directory",
          "OK",
          "1/51",
          "virtlockd crashes when the next VM ends, and all locks are lost." },
        { WHY_LONG,
          "A name over the limits: 255 bytes for a lease, 4095 for a path",
          "38/51 ENAMETOOLONG; 38/0 ENAMETOOLONG; 38/51 ENAMETOOLONG; 1/7; 87/51",
          "38/51 ENAMETOOLONG, other words; 38/51 ENAMETOOLONG; 1/51; 1/7, other words; 87/51, other words",
          "Refused before the file system is asked, and cut in the message." },
        { WHY_NUL,
          "A NUL byte in a name",
          "OK; 38/51 ENOENT; 38/0 ENOENT; 87/51; 1/7",
          "39/7; 39/7; 39/7; 39/7; 39/7",
          "virtlockd ends the name there, and locks another file than the client named." },
        { WHY_TRAILING,
          "More bytes after the arguments",
          "OK",
          "39/7",
          "The client and lockd do not mean the same call." },
        { WHY_SIZE,
          "A message over 131164 bytes, or over virtlockd's limit of 33554436",
          "OK; closed",
          "39/7, then closed; 39/7, then closed",
          "The longest legal call is shorter; what a client can make lockd keep is bounded." },
        { WHY_TYPE,
          "A message of another type than CALL",
          "no answer; 39/7; OK",
          "39/7; 39/7, other words; 39/7",
          "A client that waits for an answer gets one. No lock call has file descriptors." },
        { WHY_KEEPALIVE,
          "A keepalive PING",
          "OK",
          "OK, another header",
          "The PONG repeats the serial of the PING; virtlockd's is always 0." },
        { WHY_IDENTITY,
          "A second REGISTER on one connection with another uuid, name, id or pid",
          "OK",
          "55/7",
          "What was taken before would change its owner." },
        { WHY_NO_PROCESS,
          "REGISTER of a pid that is no process, a zombie, a thread, pid 1 or the daemon itself",
          "OK",
          "55/7",
          "Its holds would never end, or the daemon would wait for its own death." },
        { WHY_OWNER_NAME,
          "REGISTER with a name of more than 1024 bytes",
          "OK",
          "55/7",
          "What a client can make lockd keep is bounded." },
        { WHY_PID_ONLY,
          "Release by a VM with the holder's pid and another uuid (without a process: another id)",
          "OK",
          "1/51",
          "virtlockd knows an owner by its pid alone." },
        { WHY_UNCONFIRMED,
          "ACQUIRE of what the same owner holds, when the connection that took it ended with a refused ACQUIRE",
          "87/51",
          "OK",
          "libvirt gives up a VM's start or resume at the first refusal and forgets what it got before; with "
          "virtlockd that VM cannot be resumed any more." },
        { WHY_HELD_TWICE,
          "ACQUIRE of what a VM held twice (SHARED) when it died",
          "87/51",
          "OK",
          "virtlockd drops one hold of each resource, and the other one stays for ever." },
        { WHY_NO_CONNECTION,
          "RELEASE and ACQUIRE for a VM that has died and had no connection of its own",
          "OK; OK",
          "87/51; 55/7",
          "Its death ended its holds. With virtlockd they stay for ever." },
};

#define N_DIFFERENCES (sizeof(differences) / sizeof(differences[0]))
#define PARTS_MAX 8

static unsigned hits[N_DIFFERENCES][PARTS_MAX];

/* ---- the two daemons ---- */

static TestDaemon lockd;
static pid_t stock_pid;
static char roots[SIDES][PATH_MAX];
static unsigned n_calls, n_unlisted;

static void start_stock(void)
{
        const char *binary = "/usr/sbin/virtlockd";
        const char *config = work_path("virtlockd.conf");
        Conn *conn = NULL;
        FILE *f = fopen(config, "we");

        assert_non_null(f);
        fprintf(f, "log_outputs = \"4:file:%s\"\n", work_path("virtlockd.log"));
        fclose(f);
        if (access(binary, X_OK) < 0)
                fail_msg("%s is missing: Debian's package libvirt-daemon-system (or libvirt-daemon) has it", binary);
        stock_pid = fork();
        assert_true(stock_pid >= 0);
        if (stock_pid == 0) {
                int log = open(work_path("virtlockd.stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0600);

                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                (void)dup2(log, STDOUT_FILENO);
                (void)dup2(log, STDERR_FILENO);
                (void)close_range(3, ~0U, 0);
                if (chdir(roots[STOCK]) < 0)
                        _exit(126);
                execl(binary, binary, "-f", config, (char *)NULL);
                _exit(127);
        }
        wait_until((conn = conn_open_at(STOCK_SOCKET)) || waitpid(stock_pid, NULL, WNOHANG) != 0);
        if (!conn)
                fail_msg("virtlockd did not start");
        conn_close(conn);
}

static void end_stock(void)
{
        if (stock_pid <= 0)
                return;
        (void)kill(stock_pid, SIGKILL);
        (void)waitpid(stock_pid, NULL, 0);
}

/* The files that both sides have. Called again and again: what is there stays. */
static void lay_out(int side)
{
        static const struct {
                const char *name, *content, *link;
                mode_t mode;
        } things[] = {
                { "disk", "data", NULL, S_IFREG },
                { "disk2", "data", NULL, S_IFREG },
                { "empty", "", NULL, S_IFREG },
                { "twice", "", NULL, S_IFREG },
                { "directory", NULL, NULL, S_IFDIR },
                { "symlink", NULL, "disk", S_IFLNK },
                { "ls", NULL, NULL, S_IFDIR },
                { "ls/lease", "", NULL, S_IFREG },
                { "ls/image", "data", NULL, S_IFREG },
                { "ls/directory", NULL, NULL, S_IFDIR },
                { "ls/symlink", NULL, "lease", S_IFLNK },
                { "ls/null", NULL, NULL, S_IFCHR },
                { "ls/sub", NULL, NULL, S_IFDIR },
                { "ls/sub/x", "", NULL, S_IFREG },
                { "ls/a b%s%n\n\\\xff", "", NULL, S_IFREG },
        };
        char path[PATH_MAX + 64];

        for (size_t i = 0; i < sizeof(things) / sizeof(things[0]); i++) {
                FILE *f;

                (void)snprintf(path, sizeof(path), "%s/%s", roots[side], things[i].name);
                switch (things[i].mode) {
                case S_IFDIR:
                        assert_true(mkdir(path, 0700) == 0 || errno == EEXIST);
                        break;
                case S_IFLNK:
                        assert_true(symlink(things[i].link, path) == 0 || errno == EEXIST);
                        break;
                case S_IFCHR:
                        assert_true(mknod(path, S_IFCHR | 0600, makedev(1, 3)) == 0 || errno == EEXIST);
                        break;
                default:
                        if (access(path, F_OK) == 0)
                                break;
                        f = fopen(path, "we");
                        assert_non_null(f);
                        fputs(things[i].content, f);
                        fclose(f);
                }
        }
}

/* A path of that side, from a template with '@'. */
static const char *path_of(int side, const char *name)
{
        static char buffers[4][PATH_MAX * 2];
        static unsigned next;
        char *buf = buffers[next++ % 4];

        if (*name == '@')
                (void)snprintf(buf, sizeof(buffers[0]), "%s%s", roots[side], name + 1);
        else
                (void)snprintf(buf, sizeof(buffers[0]), "%s%s%s", *name == '/' ? "" : roots[side], *name == '/' ? "" : "/", name);
        return buf;
}

static void lay_out_both(void)
{
        for (int side = 0; side < SIDES; side++) {
                (void)unlink(path_of(side, "@/ls/missing"));
                (void)unlink(path_of(side, "@/missing"));
                lay_out(side);
        }
}

/* ---- calls ---- */

typedef struct Pair {
        Conn *conn[SIDES];
        uint32_t serial;
} Pair;

typedef enum AnswerKind { REPLIED, SILENT, CLOSED } AnswerKind;

typedef struct Answer {
        AnswerKind kind;
        bool closed_after;
        int file_before, file; /* is the file of the call there, before it and afterwards? -1: not asked */
        FrameHeader header;
        virtlock_error error;
        char brief[80]; /* as in the table */
} Answer;

static uint8_t payloads[SIDES][PAYLOAD_MAX];
static size_t payload_lens[SIDES];

static Pair pair_open(void)
{
        Pair pair = { .conn = { conn_open_at(STOCK_SOCKET), conn_open(&lockd) } };

        assert_non_null(pair.conn[STOCK]);
        return pair;
}

static void pair_close(Pair *pair)
{
        for (int side = 0; side < SIDES; side++)
                conn_close(pair->conn[side]);
}

static void start_payload(void)
{
        payload_lens[STOCK] = payload_lens[LOCKD] = 0;
}

static void put_side(int side, const void *bytes, size_t len)
{
        assert_true(payload_lens[side] + len <= PAYLOAD_MAX);
        memcpy(payloads[side] + payload_lens[side], bytes, len);
        payload_lens[side] += len;
}

static void put_bytes(const void *bytes, size_t len)
{
        put_side(STOCK, bytes, len);
        put_side(LOCKD, bytes, len);
}

static void put_word(uint32_t word)
{
        uint32_t big = htobe32(word);

        put_bytes(&big, sizeof(big));
}

static void put_words(uint32_t stock, uint32_t other)
{
        uint32_t big[SIDES] = { htobe32(stock), htobe32(other) };

        put_side(STOCK, &big[STOCK], sizeof(big[0]));
        put_side(LOCKD, &big[LOCKD], sizeof(big[0]));
}

/* An XDR string, from a template. */
static void put_name(const char *name)
{
        static const uint8_t zeros[4];

        for (int side = 0; side < SIDES; side++) {
                size_t start = payload_lens[side], len;
                uint32_t big = 0;

                put_side(side, &big, sizeof(big));
                for (const char *p = name; *p; p++) {
                        if (*p == '@')
                                put_side(side, roots[side], strlen(roots[side]));
                        else
                                put_side(side, *p == NUL_MARK ? "" : p, 1);
                }
                len = payload_lens[side] - start - sizeof(big);
                big = htobe32((uint32_t)len);
                memcpy(payloads[side] + start, &big, sizeof(big));
                put_side(side, zeros, (4 - len % 4) % 4);
        }
}

static void receive_answer(Conn *conn, uint32_t serial, Answer *ret)
{
        _cleanup_free_ uint8_t *payload = NULL, *rest = NULL;
        FrameHeader header;
        size_t len;

        ret->kind = CLOSED;
        if (!conn_receive(conn, &ret->header, &payload, &len))
                return;
        ret->kind = SILENT;
        if (ret->header.procedure == SENTINEL_PROCEDURE && ret->header.serial == serial + 1)
                return;
        ret->kind = REPLIED;
        if (ret->header.status == FRAME_ERROR)
                assert_int_equal(wire_decode((xdrproc_t)xdr_virtlock_error, payload, len, &ret->error), 0);
        else
                assert_int_equal(len, 0);
        ret->closed_after = !conn_receive(conn, &header, &rest, &len);
        if (!ret->closed_after)
                assert_int_equal(header.procedure, SENTINEL_PROCEDURE);
}

static const char *text(const virtlock_error_text text_or_null)
{
        return text_or_null ? *text_or_null : "(null)";
}

static void describe(Answer *answer)
{
        const virtlock_error *error = &answer->error;
        char number[24] = "";

        if (error->code == VIRTLOCK_ERR_SYSTEM)
                (void)snprintf(number, sizeof(number), " %s", strerrorname_np(error->int1) ? strerrorname_np(error->int1) : "?");
        if (answer->kind == CLOSED)
                (void)strcpy(answer->brief, "closed");
        else if (answer->kind == SILENT)
                (void)strcpy(answer->brief, "no answer");
        else if (answer->header.status == FRAME_OK)
                (void)strcpy(answer->brief, "OK");
        else
                (void)snprintf(answer->brief, sizeof(answer->brief), "%d/%d%s", error->code, error->domain, number);
        if (answer->closed_after)
                (void)strcat(answer->brief, ", then closed");
}

static void print_answer(int side, const Answer *answer)
{
        const virtlock_error *error = &answer->error;

        print_error("  %s: %s", side_names[side], answer->brief);
        if (answer->kind == REPLIED)
                print_error(" (program %u version %u procedure %d type %u serial %u status %u)", answer->header.program,
                            answer->header.version, answer->header.procedure, answer->header.type, answer->header.serial,
                            answer->header.status);
        if (answer->kind == REPLIED && answer->header.status == FRAME_ERROR)
                print_error("\n    message '%.300s'\n    level %d str1 '%s' str2 '%.300s' str3 '%s' int1 %d int2 %d",
                            text(error->message), error->level, text(error->str1), text(error->str2), text(error->str3),
                            error->int1, error->int2);
        print_error("\n");
}

/* Stock's words, with lockd's folder in them: both names are equally long. */
static void normalize(virtlock_error_text text_or_null)
{
        for (char *p = text_or_null ? *text_or_null : NULL; p && (p = strstr(p, roots[STOCK]));)
                memcpy(p, roots[LOCKD], strlen(roots[LOCKD]));
}

static bool starts_with(const virtlock_error_text longer, const virtlock_error_text start)
{
        return strncmp(text(longer), text(start), strlen(text(start))) == 0;
}

static bool same_words(const virtlock_error *stock, const virtlock_error *ours)
{
        return stock->level == ours->level && stock->int2 == ours->int2 && !stock->dom == !ours->dom && !stock->net == !ours->net &&
               strcmp(text(stock->str1), text(ours->str1)) == 0 && strcmp(text(stock->str3), text(ours->str3)) == 0 &&
               starts_with(ours->message, stock->message) && starts_with(ours->str2, stock->str2);
}

/* libvirt makes the message of str1, a format, and str2. */
static bool is_consistent(const virtlock_error *error)
{
        const char *format = text(error->str1), *place = strstr(format, "%s"), *message = text(error->message);

        if (!place)
                return strcmp(text(error->str2), "flags") == 0;
        return strncmp(message, format, (size_t)(place - format)) == 0 && strcmp(message + (place - format), text(error->str2)) == 0;
}

/* What differs beyond the briefs is added to lockd's. */
static void describe_both(Answer answers[SIDES])
{
        const FrameHeader *a = &answers[STOCK].header, *b = &answers[LOCKD].header;

        describe(&answers[STOCK]);
        describe(&answers[LOCKD]);
        if (answers[STOCK].kind == REPLIED && answers[LOCKD].kind == REPLIED) {
                if (a->program != b->program || a->version != b->version || a->procedure != b->procedure || a->type != b->type ||
                    a->serial != b->serial)
                        (void)strcat(answers[LOCKD].brief, ", another header");
                else if (strcmp(answers[STOCK].brief, answers[LOCKD].brief) == 0 && a->status == FRAME_ERROR &&
                         !same_words(&answers[STOCK].error, &answers[LOCKD].error))
                        (void)strcat(answers[LOCKD].brief, ", other words");
        }
        if (strcmp(answers[STOCK].brief, answers[LOCKD].brief) == 0 && answers[STOCK].file != answers[LOCKD].file)
                for (int side = 0; side < SIDES; side++)
                        (void)strcat(answers[side].brief, answers[side].file ? ", file there" : ", file gone");
        if (answers[LOCKD].kind != REPLIED || b->status != FRAME_ERROR)
                return;
        if (answers[LOCKD].file != answers[LOCKD].file_before)
                (void)strcat(answers[LOCKD].brief, ", but did it");
        if (!is_consistent(&answers[LOCKD].error))
                (void)strcat(answers[LOCKD].brief, ", message is not str1 with str2");
}

/* Part number n of a list; false: it has fewer. */
static bool part_of(const char *list, unsigned n, char *buf, size_t size)
{
        while (n-- > 0) {
                list = strstr(list, "; ");
                if (!list)
                        return false;
                list += 2;
        }
        (void)snprintf(buf, size, "%.*s", (int)(strstr(list, "; ") ? strstr(list, "; ") - list : (ptrdiff_t)strlen(list)), list);
        return true;
}

static bool is_listed(unsigned why, const char *stock_says, const char *lockd_says)
{
        char one[80], other[80];

        for (size_t i = 0; i < N_DIFFERENCES; i++) {
                const Difference *difference = &differences[i];

                if (!(difference->why & why))
                        continue;
                for (unsigned n = 0; part_of(difference->stock, n, one, sizeof(one)); n++) {
                        assert_true(n < PARTS_MAX);
                        assert_true(part_of(difference->lockd, n, other, sizeof(other)));
                        if (strcmp(one, stock_says) == 0 && strcmp(other, lockd_says) == 0) {
                                hits[i][n]++;
                                return true;
                        }
                }
        }
        return false;
}

static void judge(const char *label, unsigned why, Answer answers[SIDES])
{
        describe_both(answers);
        if (strcmp(answers[STOCK].brief, answers[LOCKD].brief) == 0 || is_listed(why, answers[STOCK].brief, answers[LOCKD].brief))
                return;
        n_unlisted++;
        print_error("unlisted difference: %s (why %#x)\n", label, why);
        print_answer(STOCK, &answers[STOCK]);
        print_answer(LOCKD, &answers[LOCKD]);
}

static int is_there(int side, const char *file)
{
        struct stat st;

        return file ? lstat(path_of(side, file), &st) == 0 : -1;
}

/* Sends the payload that was put together with this header to both; returns a bit for each side that said OK. */
static unsigned exchange(Pair *pair, FrameHeader header, const char *file, unsigned why, const char *label)
{
        FrameHeader sentinel = { .program = VIRTLOCK_PROGRAM, .version = VIRTLOCK_VERSION, .procedure = SENTINEL_PROCEDURE };
        Answer answers[SIDES];
        unsigned granted = 0;

        header.serial = pair->serial;
        sentinel.serial = pair->serial + 1;
        for (int side = 0; side < SIDES; side++) {
                Conn *conn = pair->conn[side];

                answers[side] = (Answer){ .file_before = is_there(side, file) };
                conn_send_frame(conn, header, payloads[side], payload_lens[side]);
                conn_send_frame(conn, sentinel, NULL, 0);
                receive_answer(conn, header.serial, &answers[side]);
                answers[side].file = is_there(side, file);
                if (answers[side].kind == REPLIED && answers[side].header.status == FRAME_OK)
                        granted |= 1U << side;
                if (side == STOCK) {
                        normalize(answers[side].error.message);
                        normalize(answers[side].error.str2);
                }
        }
        pair->serial += 2;
        n_calls++;
        judge(label, why, answers);
        for (int side = 0; side < SIDES; side++)
                wire_free((xdrproc_t)xdr_virtlock_error, &answers[side].error);
        return granted;
}

static FrameHeader call_header(int32_t procedure)
{
        return (FrameHeader){ .program = VIRTLOCK_PROGRAM, .version = VIRTLOCK_VERSION, .procedure = procedure };
}

static unsigned call_resource(Pair *pair, int32_t procedure, const char *lockspace, const char *name, uint32_t flags, unsigned why)
{
        static const char *const names[] = {
                [VIRTLOCK_CREATE_RESOURCE] = "CREATE_RESOURCE",
                [VIRTLOCK_DELETE_RESOURCE] = "DELETE_RESOURCE",
                [VIRTLOCK_ACQUIRE_RESOURCE] = "ACQUIRE_RESOURCE",
                [VIRTLOCK_RELEASE_RESOURCE] = "RELEASE_RESOURCE",
        };
        char label[256], file[PATH_MAX * 2];
        bool plain = !strchr(lockspace, NUL_MARK) && !strchr(name, NUL_MARK) && strlen(lockspace) + strlen(name) < PATH_MAX;

        start_payload();
        put_name(lockspace);
        put_name(name);
        put_word(flags);
        (void)snprintf(label, sizeof(label), "%s('%.60s', '%.60s', %#x)", names[procedure], lockspace, name, flags);
        (void)snprintf(file, sizeof(file), "%.4095s%s%.4095s", lockspace, *lockspace ? "/" : "", name);
        return exchange(pair, call_header(procedure), plain ? file : NULL, why, label);
}

static unsigned acquire(Pair *pair, const char *lockspace, const char *name, uint32_t flags, unsigned why)
{
        return call_resource(pair, VIRTLOCK_ACQUIRE_RESOURCE, lockspace, name, flags, why);
}

static unsigned release(Pair *pair, const char *lockspace, const char *name, unsigned why)
{
        return call_resource(pair, VIRTLOCK_RELEASE_RESOURCE, lockspace, name, 0, why);
}

static unsigned create_lockspace(Pair *pair, const char *path, unsigned why)
{
        char label[256];

        start_payload();
        put_name(path);
        (void)snprintf(label, sizeof(label), "CREATE_LOCKSPACE('%.60s')", path);
        return exchange(pair, call_header(VIRTLOCK_CREATE_LOCKSPACE), strlen(path) < PATH_MAX && *path ? path : NULL, why, label);
}

static unsigned new_lockspace(Pair *pair, const char *path, uint32_t flags, unsigned why)
{
        char label[256];

        start_payload();
        put_name(path);
        put_word(flags);
        (void)snprintf(label, sizeof(label), "NEW('%.60s', %#x)", path, flags);
        return exchange(pair, call_header(VIRTLOCK_NEW), strlen(path) < PATH_MAX && *path ? path : NULL, why, label);
}

static unsigned call_restrict(Pair *pair, uint32_t flags)
{
        char label[64];

        start_payload();
        put_word(flags);
        (void)snprintf(label, sizeof(label), "RESTRICT(%#x)", flags);
        return exchange(pair, call_header(VIRTLOCK_RESTRICT), NULL, 0, label);
}

static unsigned register_as(Pair *pair, const uint8_t uuid[16], const char *name, uint32_t id, uint32_t stock_pid_sent,
                            uint32_t lockd_pid_sent, uint32_t flags, unsigned why)
{
        char label[128];

        start_payload();
        put_bytes(uuid, 16);
        put_name(name);
        put_word(id);
        put_words(stock_pid_sent, lockd_pid_sent);
        put_word(flags);
        (void)snprintf(label, sizeof(label), "REGISTER('%.40s', id %u, pid %u, flags %#x)", name, id, stock_pid_sent, flags);
        return exchange(pair, call_header(VIRTLOCK_REGISTER), NULL, why, label);
}

static unsigned register_vm(Pair *pair, const Vm *vm, uint32_t flags, unsigned why)
{
        return register_as(pair, vm->uuid, vm->name, vm->id, (uint32_t)vm->pid, (uint32_t)vm->pid, flags, why);
}

static Pair pair_of(const Vm *vm)
{
        Pair pair = pair_open();

        assert_int_equal(register_vm(&pair, vm, 0, 0), 3);
        return pair;
}

/* Gives back what only one side granted, without comparing. */
static void undo(Pair *pair, unsigned granted, const char *lockspace, const char *name)
{
        char path[PATH_MAX], lock_path[PATH_MAX];

        for (int side = 0; side < SIDES; side++) {
                if (!(granted & (1U << side)))
                        continue;
                (void)snprintf(lock_path, sizeof(lock_path), "%s", *lockspace == '@' ? path_of(side, lockspace) : lockspace);
                (void)snprintf(path, sizeof(path), "%s", *name == '@' ? path_of(side, name) : name);
                assert_int_equal(conn_release(pair->conn[side], lock_path, path), 0);
        }
}

/* A VM with connections of its own to both daemons. */
static Vm start_vm(const char *name)
{
        Vm vm = vm_start_bare(name); /* for its uuid and id */
        uint32_t id = vm.id;
        uint8_t uuid[16];
        int fds[2];
        char byte = 'k';

        memcpy(uuid, vm.uuid, sizeof(uuid));
        vm_kill(&vm);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        vm.pid = fork();
        assert_true(vm.pid >= 0);
        if (vm.pid == 0) {
                const char *sockets[SIDES] = { STOCK_SOCKET, lockd.lock_socket };

                (void)dup2(fds[1], 3);
                (void)close_range(4, ~0U, 0);
                for (int side = 0; side < SIDES; side++) {
                        Conn *conn = conn_open_at(sockets[side]);

                        if (!conn || conn_register(conn, name, uuid, id, (uint32_t)getpid()) != 0 || conn_restrict(conn) != 0)
                                _exit(3);
                }
                if (write(3, &byte, 1) != 1)
                        _exit(4);
                (void)!read(3, &byte, 1);
                _exit(0);
        }
        close(fds[1]);
        vm.control = fds[0];
        assert_int_equal(read(vm.control, &byte, 1), 1);
        return vm;
}

/* ---- the tests ---- */

static Vm vm_a, vm_b;

static int set_up(void **state)
{
        (void)state;
        for (int side = 0; side < SIDES; side++) {
                (void)snprintf(roots[side], sizeof(roots[side]), "%s", work_path(side_names[side]));
                assert_int_equal(mkdir(roots[side], 0700), 0);
        }
        lay_out_both();
        start_stock();
        /* harness starts lockd in our working directory */
        {
                _cleanup_fd_ int here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
                char binary[PATH_MAX];

                assert_non_null(realpath(getenv("LOCKD") ? getenv("LOCKD") : "build/lockd", binary));
                assert_int_equal(setenv("LOCKD", binary, 1), 0);
                assert_int_equal(chdir(roots[LOCKD]), 0);
                daemon_start(&lockd, NULL, NULL);
                assert_int_equal(fchdir(here), 0);
        }
        vm_a = vm_start_bare("alpha");
        vm_b = vm_start_bare("beta");
        return 0;
}

static int tear_down(void **state)
{
        (void)state;
        vm_kill(&vm_a);
        vm_kill(&vm_b);
        daemon_end(&lockd);
        end_stock();
        return 0;
}

static int start_counting(void **state)
{
        (void)state;
        n_unlisted = 0;
        lay_out_both();
        return 0;
}

/* Each unlisted difference was printed when it was seen. */
static void settle(void)
{
        assert_int_equal(n_unlisted, 0);
}

/* Every procedure, before REGISTER, after it and after RESTRICT, with every kind of flags. */
static void test_states(void **state)
{
        static const uint32_t flags[] = { 0, 1, 2, 3, 4, 0x80000000 };

        (void)state;
        for (int stage = 0; stage < 3; stage++)
                for (int32_t procedure = VIRTLOCK_REGISTER; procedure <= VIRTLOCK_CREATE_LOCKSPACE; procedure++)
                        for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
                                Pair pair = pair_open();
                                unsigned granted = 0;

                                if (stage > 0)
                                        register_vm(&pair, &vm_a, 0, 0);
                                if (stage > 1)
                                        call_restrict(&pair, 0);
                                switch (procedure) {
                                case VIRTLOCK_REGISTER:
                                        register_vm(&pair, &vm_a, flags[i], 0);
                                        break;
                                case VIRTLOCK_RESTRICT:
                                        call_restrict(&pair, flags[i]);
                                        break;
                                case VIRTLOCK_NEW:
                                        new_lockspace(&pair, stage == 1 && i == 0 ? "@/new" : "", flags[i], 0);
                                        break;
                                case VIRTLOCK_CREATE_LOCKSPACE:
                                        create_lockspace(&pair, stage == 1 ? "@/ls" : "", 0);
                                        break;
                                default:
                                        granted = call_resource(&pair, procedure, "", "@/empty", flags[i], 0);
                                        if (procedure == VIRTLOCK_ACQUIRE_RESOURCE && granted == 3)
                                                release(&pair, "", "@/empty", 0);
                                        lay_out_both();
                                }
                                pair_close(&pair);
                        }
        settle();
}

typedef struct NameCase {
        const char *name;
        unsigned why;
} NameCase;

static void compare_names(Pair *pair, const char *lockspace, unsigned lockspace_why, const NameCase *cases, size_t n)
{
        for (size_t i = 0; i < n; i++) {
                const char *name = cases[i].name;
                unsigned why = cases[i].why | lockspace_why;

                for (uint32_t flags = 0; flags < 4; flags++) {
                        unsigned granted = acquire(pair, lockspace, name, flags, why);

                        if (granted == 3) {
                                call_resource(pair, VIRTLOCK_CREATE_RESOURCE, lockspace, name, 0, why);
                                call_resource(pair, VIRTLOCK_DELETE_RESOURCE, lockspace, name, 0, why);
                                release(pair, lockspace, name, why);
                        } else
                                undo(pair, granted, lockspace, name);
                        lay_out_both();
                }
                release(pair, lockspace, name, why);
                call_resource(pair, VIRTLOCK_CREATE_RESOURCE, lockspace, name, 0, why);
                lay_out_both();
                call_resource(pair, VIRTLOCK_DELETE_RESOURCE, lockspace, name, 0, why);
                lay_out_both();
        }
}

/* The calls on resources, with every kind of lockspace and of name. */
static void test_names(void **state)
{
        static const NameCase leases[] = {
                { "lease", 0 },
                { "missing", 0 },
                { "image", WHY_CONTENT },
                { "directory", 0 },
                { "symlink", WHY_LEASE_LINK },
                { "null", WHY_KIND },
                { "", WHY_LEASE_NAME },
                { ".", WHY_LEASE_NAME },
                { "..", WHY_LEASE_NAME },
                { "sub/x", WHY_LEASE_NAME },
                { "../disk", WHY_LEASE_NAME },
                { "a b%s%n\n\\\xff", 0 },
        };
        static const NameCase images[] = {
                { "@/disk", WHY_CONTENT },
                { "@/missing", 0 },
                { "@/empty", 0 },
                { "@/directory", 0 },
                { "@/symlink", WHY_DELETE_LINK | WHY_CONTENT },
                { "@/ls/null", WHY_KIND },
                { "@/nowhere/x", 0 },
                { "@/disk/x", 0 },
                { "@/ls/a b%s%n\n\\\xff", 0 },
                { "", WHY_RELATIVE },
                { "disk", WHY_RELATIVE },
                { "missing", WHY_RELATIVE },
                { "@//empty", 0 },
                { "@/empty/", 0 },
                { "@/ls/../empty", 0 },
                { "/", 0 },
        };
        Pair pair = pair_of(&vm_a);

        (void)state;
        assert_int_equal(create_lockspace(&pair, "@/ls", 0), 3);
        compare_names(&pair, "", 0, images, sizeof(images) / sizeof(images[0]));
        compare_names(&pair, "@/ls", 0, leases, sizeof(leases) / sizeof(leases[0]));
        compare_names(&pair, "@/unknown", 0, leases, 2);
        compare_names(&pair, "ls", WHY_RELATIVE, leases, 2);
        compare_names(&pair, "@//ls", WHY_SPELLING, leases, 1);
        compare_names(&pair, "@/ls/", WHY_SPELLING, leases, 1);
        pair_close(&pair);
        settle();
}

/* Two acquires in every mode by every combination of owners and connections, and releases by all of them. */
static void test_owners(void **state)
{
        Pair first = pair_of(&vm_a), second = pair_of(&vm_a), other = pair_of(&vm_b);
        Pair *const takers[] = { &first, &second, &other };

        (void)state;
        assert_int_equal(create_lockspace(&first, "@/ls", 0), 3);
        for (int place = 0; place < 2; place++) {
                const char *lockspace = place ? "@/ls" : "", *name = place ? "lease" : "@/empty";

                for (uint32_t one = 0; one < 4; one++)
                        for (uint32_t two = 0; two < 4; two++)
                                for (int taker = 0; taker < 3; taker++) {
                                        assert_int_equal(acquire(&first, lockspace, name, one, 0), 3);
                                        acquire(takers[taker], lockspace, name, two, 0);
                                        call_resource(&other, VIRTLOCK_CREATE_RESOURCE, lockspace, name, 0, 0);
                                        call_resource(&other, VIRTLOCK_DELETE_RESOURCE, lockspace, name, 0, 0);
                                        release(&other, lockspace, name, 0);
                                        release(&second, lockspace, name, 0);
                                        release(&other, lockspace, name, 0);
                                        release(&first, lockspace, name, 0);
                                        release(&first, lockspace, name, 0);
                                        lay_out_both();
                                }
        }
        pair_close(&first);
        pair_close(&second);
        pair_close(&other);
        settle();
}

static void *sleep_for_ever(void *ret_tid)
{
        __atomic_store_n((pid_t *)ret_tid, gettid(), __ATOMIC_SEQ_CST);
        for (;;)
                (void)pause();
        return NULL;
}

/* Who may be an owner, and how often. */
static void test_registration(void **state)
{
        static char long_name[70000];
        const uint8_t *uuid = vm_a.uuid;
        uint32_t pid_a = (uint32_t)vm_a.pid, pid_b = (uint32_t)vm_b.pid;
        Vm dead = vm_start_bare("dead"), zombie = vm_start_bare("zombie");
        pthread_t thread;
        pid_t tid = 0;
        Pair pair;

        (void)state;
        vm_kill(&dead);
        (void)kill(zombie.pid, SIGKILL);
        wait_until(!vm_is_alive(&zombie));
        assert_int_equal(pthread_create(&thread, NULL, sleep_for_ever, &tid), 0);
        wait_until(__atomic_load_n(&tid, __ATOMIC_SEQ_CST) != 0);
        memset(long_name, 'n', sizeof(long_name) - 1);

#define FRESH(...)                                                       \
        do {                                                             \
                pair = pair_open();                                      \
                if (register_as(&pair, __VA_ARGS__) == 3)                \
                        acquire(&pair, "", "@/nowhere/x", 0, 0);         \
                pair_close(&pair);                                       \
        } while (0)
        FRESH(uuid, "alpha", 0, pid_a, pid_a, 0, 0);
        FRESH(uuid, "alpha", 0xffffffff, pid_a, pid_a, 0, 0);
        FRESH(uuid, "", 1, pid_a, pid_a, 0, 0);
        FRESH(uuid, "alpha", 1, 0, 0, 0, 0);
        FRESH(uuid, "dead", 1, (uint32_t)dead.pid, (uint32_t)dead.pid, 0, WHY_NO_PROCESS);
        FRESH(uuid, "zombie", 1, (uint32_t)zombie.pid, (uint32_t)zombie.pid, 0, WHY_NO_PROCESS);
        FRESH(uuid, "init", 1, 1, 1, 0, WHY_NO_PROCESS);
        FRESH(uuid, "thread", 1, (uint32_t)tid, (uint32_t)tid, 0, WHY_NO_PROCESS);
        FRESH(uuid, "daemon", 1, (uint32_t)stock_pid, (uint32_t)lockd.pid, 0, WHY_NO_PROCESS);
        FRESH(uuid, "huge", 1, 0x7fffffff, 0x7fffffff, 0, WHY_NO_PROCESS);
        FRESH(uuid, "negative", 1, 0xffffffff, 0xffffffff, 0, WHY_NO_PROCESS);
        FRESH(uuid, long_name + sizeof(long_name) - 1 - 1024, 1, pid_a, pid_a, 0, 0);
        FRESH(uuid, long_name + sizeof(long_name) - 1 - 1025, 1, pid_a, pid_a, 0, WHY_OWNER_NAME);
        FRESH(uuid, long_name + sizeof(long_name) - 1 - 65536, 1, pid_a, pid_a, 0, WHY_OWNER_NAME);
        FRESH(uuid, long_name + sizeof(long_name) - 1 - 65537, 1, pid_a, pid_a, 0, 0);
        FRESH(uuid, "a\x1e" "b", 1, pid_a, pid_a, 0, WHY_NUL);
        FRESH(uuid, "%s%n\n\xff", 1, pid_a, pid_a, 0, 0);
#undef FRESH

        /* Again on one connection. */
        pair = pair_of(&vm_a);
        register_vm(&pair, &vm_a, 0, 0);
        register_vm(&pair, &vm_b, 0, WHY_IDENTITY);
        register_as(&pair, uuid, "other", vm_a.id, pid_a, pid_a, 0, WHY_IDENTITY);
        register_as(&pair, uuid, vm_a.name, vm_a.id + 1, pid_a, pid_a, 0, WHY_IDENTITY);
        register_as(&pair, uuid, vm_a.name, vm_a.id, pid_b, pid_b, 0, WHY_IDENTITY);
        register_as(&pair, uuid, vm_a.name, 0, pid_a, pid_a, 0, 0);
        register_vm(&pair, &vm_a, 0, 0);
        call_restrict(&pair, 0);
        register_vm(&pair, &vm_a, 0, 0);
        call_restrict(&pair, 0);
        pair_close(&pair);

        /* A pid is all that stock knows of an owner. */
        pair = pair_of(&vm_a);
        {
                Pair same_pid = pair_open(), none = pair_open(), none2 = pair_open();

                assert_int_equal(register_as(&same_pid, vm_b.uuid, "gamma", 7, pid_a, pid_a, 0, 0), 3);
                assert_int_equal(acquire(&pair, "", "@/empty", 0, 0), 3);
                acquire(&same_pid, "", "@/empty", 0, 0);
                undo(&pair, 2 & ~release(&same_pid, "", "@/empty", WHY_PID_ONLY), "", "@/empty");
                assert_int_equal(register_as(&none, uuid, "none", 1, 0, 0, 0, 0), 3);
                assert_int_equal(register_as(&none2, uuid, "none", 2, 0, 0, 0, 0), 3);
                assert_int_equal(acquire(&none, "", "@/empty", 0, 0), 3);
                acquire(&none2, "", "@/empty", 0, 0);
                undo(&none, 2 & ~release(&none2, "", "@/empty", WHY_PID_ONLY), "", "@/empty");
                pair_close(&same_pid);
                pair_close(&none);
                pair_close(&none2);
        }
        pair_close(&pair);
        pthread_cancel(thread);
        pthread_join(thread, NULL);
        vm_wait(&zombie);
        settle();
}

static char *repeat(char c, size_t n, const char *before)
{
        char *name = malloc(strlen(before) + n + 1);

        assert_non_null(name);
        memset(mempcpy(name, before, strlen(before)), c, n);
        name[strlen(before) + n] = '\0';
        return name;
}

static void test_lockspaces(void **state)
{
        Pair pair = pair_of(&vm_a);
        _cleanup_free_ char *component = repeat('c', 256, "@/"), *path = repeat('/', 5000, "@/");
        _cleanup_free_ char *longest = repeat('p', 65537, "@/");

        (void)state;
        for (size_t i = 3; i < 5000; i += 2)
                path[i] = 'd';
        create_lockspace(&pair, "@/ls", 0);
        create_lockspace(&pair, "@/ls", 0);
        new_lockspace(&pair, "@/ls", 0, 0);
        new_lockspace(&pair, "@/directory", 0, 0);
        new_lockspace(&pair, "@/directory", 0, 0);
        create_lockspace(&pair, "@/directory", 0);
        create_lockspace(&pair, "@/p/q/r", 0);
        new_lockspace(&pair, "@/p/q/s", 0, 0);
        acquire(&pair, "@/p/q/r", "x", AUTOCREATE, 0);
        release(&pair, "@/p/q/r", "x", 0);
        new_lockspace(&pair, "", 0, 0);
        create_lockspace(&pair, "", 0);
        create_lockspace(&pair, "@/disk", 0);
        create_lockspace(&pair, "@/ls/null", 0);
        create_lockspace(&pair, "@/disk/below", WHY_DIRECTORY);
        create_lockspace(&pair, "/proc/nowhere", WHY_DIRECTORY);
        acquire(&pair, "/proc/nowhere", "x", 0, WHY_DIRECTORY);
        for (int side = 0; side < SIDES; side++)
                assert_int_equal(symlink("nowhere", path_of(side, "@/dangling")), 0);
        create_lockspace(&pair, "@/dangling", WHY_DIRECTORY);
        for (int side = 0; side < SIDES; side++)
                assert_int_equal(symlink("directory", path_of(side, "@/dirlink")), 0);
        create_lockspace(&pair, "@/dirlink", 0);
        create_lockspace(&pair, "@//ls", 0);
        create_lockspace(&pair, "@/ls//", 0);
        acquire(&pair, "@/ls", "lease", 0, 0);
        acquire(&pair, "@//ls", "lease", 0, WHY_ALIAS);
        release(&pair, "@/ls//", "lease", WHY_SPELLING);
        release(&pair, "@/ls", "lease", WHY_SPELLING);
        new_lockspace(&pair, "@//directory", 0, WHY_SPELLING);
        create_lockspace(&pair, "relative", WHY_RELATIVE);
        create_lockspace(&pair, ".", WHY_RELATIVE);
        create_lockspace(&pair, component, WHY_DIRECTORY);
        create_lockspace(&pair, path, WHY_LONG);
        create_lockspace(&pair, longest, 0);
        create_lockspace(&pair, "@/nul\x1e" "here", WHY_NUL);
        create_lockspace(&pair, "/", 0);
        create_lockspace(&pair, "@/a b%s%n\n\\\xff", 0);
        acquire(&pair, "@/a b%s%n\n\\\xff", "x", 0, 0);
        pair_close(&pair);
        settle();
}

/* One file by several names. */
static void test_aliases(void **state)
{
        static const char *const aliases[] = { "@/hard", "@/symlink", "@//disk", "@/./disk", "@/ls/../disk" };
        Pair a = pair_of(&vm_a), b = pair_of(&vm_b);

        (void)state;
        for (int side = 0; side < SIDES; side++)
                assert_int_equal(link(path_of(side, "@/disk"), path_of(side, "@/hard")), 0);
        assert_int_equal(create_lockspace(&a, "@", 0), 3);
        for (size_t i = 0; i < sizeof(aliases) / sizeof(aliases[0]); i++) {
                assert_int_equal(acquire(&a, "", "@/disk", 0, 0), 3);
                undo(&b, acquire(&b, "", aliases[i], 0, WHY_ALIAS) & 1, "", aliases[i]);
                release(&b, "", aliases[i], 0);
                call_resource(&b, VIRTLOCK_CREATE_RESOURCE, "", aliases[i], 0, WHY_ALIAS);
                assert_int_equal(release(&a, "", "@/disk", 0), 3);

                assert_int_equal(acquire(&a, "", "@/disk", SHARED, 0), 3);
                assert_int_equal(acquire(&b, "", aliases[i], SHARED, 0), 3);
                release(&b, "", "@/disk", 0);
                assert_int_equal(release(&b, "", aliases[i], 0), 3);
                assert_int_equal(release(&a, "", "@/disk", 0), 3);
        }
        assert_int_equal(acquire(&a, "@", "disk", 0, 0), 3);
        undo(&b, acquire(&b, "", "@/disk", 0, WHY_ALIAS) & 1, "", "@/disk");
        assert_int_equal(release(&a, "@", "disk", 0), 3);
        for (int side = 0; side < SIDES; side++)
                assert_int_equal(unlink(path_of(side, "@/hard")), 0);

        /* The file was replaced while its name was locked. */
        assert_int_equal(acquire(&a, "", "@/disk2", SHARED, 0), 3);
        for (int side = 0; side < SIDES; side++) {
                assert_int_equal(unlink(path_of(side, "@/disk2")), 0);
                lay_out(side);
        }
        undo(&b, acquire(&b, "", "@/disk2", SHARED, WHY_REPLACED) & 1, "", "@/disk2");
        assert_int_equal(release(&a, "", "@/disk2", 0), 3);

        /* Locked by a process that neither of them knows. */
        {
                struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
                int fds[SIDES];

                for (int side = 0; side < SIDES; side++) {
                        fds[side] = open(path_of(side, "@/disk"), O_RDWR | O_CLOEXEC);
                        assert_int_equal(fcntl(fds[side], F_SETLK, &lock), 0);
                }
                for (uint32_t flags = 0; flags < 4; flags++)
                        acquire(&a, "", "@/disk", flags, 0);
                close(fds[STOCK]);
                close(fds[LOCKD]);
                assert_int_equal(acquire(&a, "", "@/disk", 0, 0), 3);
                assert_int_equal(release(&a, "", "@/disk", 0), 3);
        }
        pair_close(&a);
        pair_close(&b);
        settle();
}

/* Other kinds of files, and links that lead nowhere. */
static void test_kinds(void **state)
{
        Pair pair = pair_of(&vm_a);

        (void)state;
        assert_int_equal(create_lockspace(&pair, "@/ls", 0), 3);
        for (int side = 0; side < SIDES; side++) {
                struct sockaddr_un address = { .sun_family = AF_UNIX };
                int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

                (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path_of(side, "@/ls/socket"));
                assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
                close(fd);
        }
        for (uint32_t flags = 0; flags < 4; flags++) {
                acquire(&pair, "", "@/ls/socket", flags, WHY_KIND);
                acquire(&pair, "@/ls", "socket", flags, WHY_KIND);
        }
        call_resource(&pair, VIRTLOCK_CREATE_RESOURCE, "@/ls", "socket", 0, WHY_KIND);
        call_resource(&pair, VIRTLOCK_DELETE_RESOURCE, "@/ls", "socket", 0, WHY_KIND);

        for (int step = 0; step < 6; step++) {
                for (int side = 0; side < SIDES; side++) {
                        (void)unlink(path_of(side, "@/ls/aim"));
                        assert_true(symlink("aim", path_of(side, "@/ls/dangling")) == 0 || errno == EEXIST);
                }
                switch (step) {
                case 0:
                        acquire(&pair, "", "@/ls/dangling", 0, 0);
                        break;
                case 1:
                        undo(&pair, acquire(&pair, "", "@/ls/dangling", AUTOCREATE, WHY_DANGLING), "", "@/ls/dangling");
                        break;
                case 2:
                        undo(&pair, acquire(&pair, "@/ls", "dangling", AUTOCREATE, WHY_LEASE_LINK), "@/ls", "dangling");
                        break;
                case 3:
                        call_resource(&pair, VIRTLOCK_CREATE_RESOURCE, "", "@/ls/dangling", 0, WHY_DANGLING);
                        break;
                case 4:
                        call_resource(&pair, VIRTLOCK_CREATE_RESOURCE, "@/ls", "dangling", 0, WHY_LEASE_LINK);
                        break;
                default:
                        call_resource(&pair, VIRTLOCK_DELETE_RESOURCE, "@/ls", "dangling", 0, WHY_DELETE_LINK);
                }
        }
        pair_close(&pair);
        settle();
}

/* Names at the limits. */
static void test_long_names(void **state)
{
        static char deep[2][PATH_MAX * 2];
        _cleanup_free_ char *lease = repeat('l', 255, ""), *directory = repeat('d', 255, ""), *over = repeat('l', 256, "");
        _cleanup_free_ char *string_max = repeat('s', 65536, ""), *string_over = repeat('s', 65537, "");
        _cleanup_free_ char *path_max = repeat('/', 65536, "/"), *last = NULL;
        size_t root_len = strlen(roots[STOCK]), len;
        Pair pair = pair_of(&vm_a);

        (void)state;
        assert_int_equal(create_lockspace(&pair, "@/ls", 0), 3);
        for (uint32_t flags = 0; flags <= AUTOCREATE; flags += AUTOCREATE) {
                const char *const names[] = { lease, over, string_max, string_over };

                for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
                        unsigned granted = acquire(&pair, "@/ls", names[i], flags, WHY_LONG);

                        release(&pair, "@/ls", names[i], WHY_LONG);
                        assert_int_equal(granted, i == 0 && flags ? 3 : 0);
                        acquire(&pair, "", names[i], flags, WHY_RELATIVE | WHY_LONG);
                        acquire(&pair, names[i], "lease", flags, WHY_LONG);
                }
                call_resource(&pair, VIRTLOCK_CREATE_RESOURCE, "@/ls", over, 0, WHY_LONG);
                call_resource(&pair, VIRTLOCK_DELETE_RESOURCE, "@/ls", over, 0, WHY_LONG);
        }
        acquire(&pair, "", path_max + 1, 0, WHY_LONG);

        /* A file whose path has 4095 bytes, and one byte more by another spelling. */
        (void)strcpy(deep[0], "@");
        len = root_len;
        while (len < PATH_MAX - 1 - 256) {
                (void)strcat(strcat(deep[0], "/"), directory);
                len += 256;
        }
        /* What is left for "/xxx" */
        last = repeat('x', PATH_MAX - 1 - len - 1, "/");
        (void)strcat(deep[0], last);
        for (int side = 0; side < SIDES; side++) {
                char *path = strdup(path_of(side, deep[0]));

                assert_non_null(path);
                assert_int_equal(strlen(path), PATH_MAX - 1);
                for (char *p = path + root_len + 1; (p = strchr(p, '/')); p++) {
                        *p = '\0';
                        assert_int_equal(mkdir(path, 0700), 0);
                        *p = '/';
                }
                free(path);
        }
        (void)strcat(strcpy(deep[1], "@/"), deep[0] + 1);
        acquire(&pair, "", deep[0], 0, 0);
        assert_int_equal(acquire(&pair, "", deep[0], AUTOCREATE, 0), 3);
        acquire(&pair, "", deep[1], 0, WHY_LONG);
        assert_int_equal(release(&pair, "", deep[0], 0), 3);
        create_lockspace(&pair, deep[1], WHY_LONG);
        pair_close(&pair);
        settle();
}

static unsigned raw(Pair *pair, FrameHeader header, unsigned why, const char *label)
{
        unsigned granted = exchange(pair, header, NULL, why, label);

        if (granted & 1)
                undo(pair, granted, "", "@/disk");
        else
                assert_int_equal(granted, 0);
        return granted;
}

static void put_acquire(const char *name)
{
        start_payload();
        put_name("");
        put_name(name);
        put_word(0);
}

static void test_frames(void **state)
{
        static const uint32_t words[] = { 0, 1, 2, 3, 4, 5, 6, 7, 99, 0x7fffffff, 0x80000000, 0xffffffff };
        const size_t n_words = sizeof(words) / sizeof(words[0]);
        FrameHeader header;
        Pair pair = pair_of(&vm_a);
        char label[80];
        size_t whole;

        (void)state;
        for (size_t i = 0; i < n_words; i++) {
                put_acquire("@/disk");
                if (words[i] < 1 || words[i] > 8) {
                        header = call_header((int32_t)words[i]);
                        (void)snprintf(label, sizeof(label), "procedure %#x", words[i]);
                        raw(&pair, header, 0, label);
                }
                header = call_header(VIRTLOCK_ACQUIRE_RESOURCE);
                header.program = words[i];
                (void)snprintf(label, sizeof(label), "program %#x", words[i]);
                raw(&pair, header, 0, label);
                header = call_header(VIRTLOCK_ACQUIRE_RESOURCE);
                header.version = words[i];
                (void)snprintf(label, sizeof(label), "version %#x", words[i]);
                raw(&pair, header, 0, label);
                header = call_header(VIRTLOCK_ACQUIRE_RESOURCE);
                header.status = words[i];
                (void)snprintf(label, sizeof(label), "status %#x", words[i]);
                raw(&pair, header, 0, label);
                header.program = 77;
                (void)snprintf(label, sizeof(label), "unknown program, status %#x", words[i]);
                raw(&pair, header, 0, label);
                header = call_header(VIRTLOCK_ACQUIRE_RESOURCE);
                header.type = words[i];
                (void)snprintf(label, sizeof(label), "type %#x", words[i]);
                raw(&pair, header, WHY_TYPE, label);
                header.program = 77;
                (void)snprintf(label, sizeof(label), "unknown program, type %#x", words[i]);
                raw(&pair, header, WHY_TYPE, label);
        }
        /* A call with fds, of which there are none. */
        start_payload();
        put_word(0);
        put_name("");
        put_name("@/disk");
        put_word(0);
        header = call_header(VIRTLOCK_ACQUIRE_RESOURCE);
        header.type = FRAME_CALL_WITH_FDS;
        raw(&pair, header, WHY_TYPE, "CALL_WITH_FDS without fds");

        /* Every length of payload, up to the right one and over it. */
        put_acquire("@/disk");
        whole = payload_lens[STOCK];
        for (size_t len = 0; len < whole + 9; len++) {
                put_acquire("@/disk");
                put_bytes("12345678", 8);
                payload_lens[STOCK] = payload_lens[LOCKD] = len;
                (void)snprintf(label, sizeof(label), "ACQUIRE with %zu bytes of %zu", len, whole);
                raw(&pair, call_header(VIRTLOCK_ACQUIRE_RESOURCE), len > whole ? WHY_TRAILING : 0, label);
        }
        put_acquire("@/disk\x1ehidden");
        raw(&pair, call_header(VIRTLOCK_ACQUIRE_RESOURCE), WHY_NUL, "ACQUIRE with a NUL in the name");
        call_resource(&pair, VIRTLOCK_ACQUIRE_RESOURCE, "\x1e", "@/nowhere", 0, WHY_NUL);
        call_resource(&pair, VIRTLOCK_RELEASE_RESOURCE, "", "@/nowhere\x1e", 0, WHY_NUL);
        call_resource(&pair, VIRTLOCK_CREATE_RESOURCE, "", "@/nowhere/x\x1e", 0, WHY_NUL);
        call_resource(&pair, VIRTLOCK_DELETE_RESOURCE, "", "@/nowhere\x1e", 0, WHY_NUL);
        new_lockspace(&pair, "@/directory\x1e", 0, WHY_NUL);

        /* A length of a string that the message does not have. */
        start_payload();
        put_word(0xfffffffc);
        raw(&pair, call_header(VIRTLOCK_ACQUIRE_RESOURCE), 0, "ACQUIRE with a string of 4 GB");
        start_payload();
        put_word(65536);
        raw(&pair, call_header(VIRTLOCK_CREATE_LOCKSPACE), 0, "CREATE_LOCKSPACE with a string of 65536 bytes that are missing");

        /* The bytes that fill a string up to a multiple of four may have any value: they stand before the flags. */
        put_acquire("@/disk.");
        payloads[STOCK][payload_lens[STOCK] - 5] = payloads[LOCKD][payload_lens[LOCKD] - 5] = 0xff;
        assert_int_not_equal((strlen(roots[STOCK]) + strlen("/disk.")) % 4, 0);
        raw(&pair, call_header(VIRTLOCK_ACQUIRE_RESOURCE), 0, "ACQUIRE with other bytes than zeros behind the name");

        /* Keepalive. */
        start_payload();
        for (int32_t procedure = 0; procedure < 4; procedure++)
                for (uint32_t type = 0; type < 4; type++)
                        for (uint32_t version = 0; version < 3; version++) {
                                header = call_header(procedure);
                                header.program = FRAME_KEEPALIVE_PROGRAM;
                                header.version = version;
                                header.type = type;
                                (void)snprintf(label, sizeof(label), "keepalive version %u procedure %d type %u", version,
                                               procedure, type);
                                exchange(&pair, header, NULL, WHY_TYPE | WHY_KEEPALIVE, label);
                        }
        pair_close(&pair);

        /* Lengths that are none. */
        for (uint32_t length = 1; length < FRAME_HEADER_SIZE; length++) {
                pair = pair_open();
                start_payload();
                header = call_header(VIRTLOCK_ACQUIRE_RESOURCE);
                header.length = length;
                (void)snprintf(label, sizeof(label), "length %u", length);
                exchange(&pair, header, NULL, 0, label);
                pair_close(&pair);
        }
        for (size_t i = 0; i < 3; i++) {
                static const uint32_t lengths[] = { 33554432 + 5, 0x80000000, 0xffffffff };

                pair = pair_open();
                start_payload();
                header = call_header(VIRTLOCK_ACQUIRE_RESOURCE);
                header.length = lengths[i];
                (void)snprintf(label, sizeof(label), "length %u", lengths[i]);
                exchange(&pair, header, NULL, WHY_SIZE, label);
                pair_close(&pair);
        }
        pair = pair_of(&vm_a);
        put_acquire("@/disk");
        payload_lens[STOCK] = payload_lens[LOCKD] = 200000;
        exchange(&pair, call_header(VIRTLOCK_ACQUIRE_RESOURCE), NULL, WHY_SIZE, "ACQUIRE of 200000 bytes");
        assert_int_equal(conn_release(pair.conn[STOCK], "", path_of(STOCK, "@/disk")), 0);
        pair_close(&pair);
        settle();
}

/* What ends a hold, apart from a release. */
static void test_death(void **state)
{
        Pair b = pair_of(&vm_b);
        Vm vm = start_vm("mortal");
        Pair conn = pair_of(&vm);

        (void)state;
        /* Its own connection closes, because it dies: free on both sides. */
        assert_int_equal(acquire(&conn, "", "@/disk", 0, 0), 3);
        assert_int_equal(acquire(&conn, "", "@/twice", SHARED, 0), 3);
        assert_int_equal(acquire(&conn, "", "@/twice", SHARED, 0), 3);
        assert_int_equal(acquire(&b, "", "@/disk", 0, 0), 0);
        pair_close(&conn);
        assert_int_equal(acquire(&b, "", "@/disk", 0, 0), 0);
        vm_kill(&vm);
        for (int side = 0; side < SIDES; side++)
                wait_until(is_lockable(path_of(side, "@/disk"), false));
        wait_unlisted(&lockd, "", path_of(LOCKD, "@/twice"));
        assert_int_equal(acquire(&b, "", "@/disk", 0, 0), 3);
        assert_int_equal(release(&b, "", "@/disk", 0), 3);
        undo(&b, acquire(&b, "", "@/twice", 0, WHY_HELD_TWICE), "", "@/twice");

        /* Its own connection closes while it lives: lockd holds on, stock kills it. */
        vm = start_vm("mortal");
        conn = pair_of(&vm);
        assert_int_equal(acquire(&conn, "", "@/disk", 0, 0), 3);
        pair_close(&conn);
        vm_kill(&vm);
        for (int side = 0; side < SIDES; side++)
                wait_until(is_lockable(path_of(side, "@/disk"), false));

        /* It dies, and had no connection of its own. */
        vm = vm_start_bare("mortal");
        conn = pair_of(&vm);
        assert_int_equal(acquire(&conn, "", "@/empty", 0, 0), 3);
        vm_kill(&vm);
        wait_unlisted(&lockd, "", path_of(LOCKD, "@/empty"));
        release(&conn, "", "@/empty", WHY_NO_CONNECTION);
        undo(&conn, acquire(&conn, "", "@/empty", 0, WHY_NO_CONNECTION), "", "@/empty");
        pair_close(&conn);
        settle();
        pair_close(&b);
}

/* A connection that took something ends with a refusal: its owner may not know of what it took before. */
static void test_unconfirmed(void **state)
{
        Pair a = pair_of(&vm_a), b = pair_of(&vm_b), again;

        (void)state;
        assert_int_equal(acquire(&b, "", "@/disk2", 0, 0), 3);
        assert_int_equal(acquire(&a, "", "@/disk", 0, 0), 3);
        acquire(&a, "", "@/disk2", 0, 0);
        pair_close(&a);
        again = pair_of(&vm_a);
        acquire(&b, "", "@/disk", 0, 0);
        acquire(&again, "", "@/disk", SHARED, 0);
        wait_until(acquire(&again, "", "@/disk", 0, WHY_UNCONFIRMED) == 2); /* the daemon may not have seen the end yet */
        acquire(&again, "", "@/disk", 0, 0);
        assert_int_equal(release(&again, "", "@/disk", 0), 3);
        assert_int_equal(release(&b, "", "@/disk2", 0), 3);

        /* A good end leaves no doubt. */
        assert_int_equal(acquire(&again, "", "@/disk", 0, 0), 3);
        pair_close(&again);
        again = pair_of(&vm_a);
        acquire(&again, "", "@/disk", 0, 0);
        release(&again, "", "@/disk", 0);
        pair_close(&again);
        pair_close(&b);
        settle();
}

/* The last one: stock does not survive it. */
static void test_new_of_a_file(void **state)
{
        Pair pair = pair_of(&vm_a);
        Vm vm = start_vm("last");

        (void)state;
        new_lockspace(&pair, "@/disk", 0, WHY_NEW_FILE);
        vm_kill(&vm);
        wait_until(waitpid(stock_pid, NULL, WNOHANG) == stock_pid);
        stock_pid = 0;
        assert_int_equal(conn_acquire(pair.conn[LOCKD], "", path_of(LOCKD, "@/disk"), 0), 0);
        pair_close(&pair);
        settle();
}

/* Every row was hit, and docs/differences.md says the same. PRINT_TABLE=1 prints what belongs there. */
static void test_table(void **state)
{
        _cleanup_free_ char *page = NULL;
        size_t size = 0, n_lines = 0;
        char part[80], line[2048];
        unsigned stale = 0;
        FILE *f = fopen("docs/differences.md", "re");

        (void)state;
        print_message("%u calls compared\n", n_calls);
        assert_true(n_calls >= CALLS_WANTED);
        assert_non_null(f);
        assert_true(getdelim(&page, &size, '\0', f) > 0);
        fclose(f);
        for (size_t i = 0; i < N_DIFFERENCES; i++) {
                const Difference *difference = &differences[i];

                for (unsigned n = 0; part_of(difference->stock, n, part, sizeof(part)); n++)
                        if (hits[i][n] == 0) {
                                stale++;
                                print_error("nothing hit this any more: %s: %s (number %u)\n", difference->what, part, n + 1);
                        }
                (void)snprintf(line, sizeof(line), "| %s | %s | %s | %s |\n", difference->what, difference->stock, difference->lockd,
                               difference->reason);
                if (getenv("PRINT_TABLE"))
                        print_message("%s", line);
                else if (!strstr(page, line)) {
                        stale++;
                        print_error("docs/differences.md lacks: %s", line);
                }
        }
        for (const char *p = page; (p = strstr(p, "\n| ")); p++)
                n_lines++;
        assert_int_equal(n_lines, N_DIFFERENCES + 1); /* and the heading */
        assert_int_equal(stale, 0);
}

#define TEST(test) cmocka_unit_test_setup((test), start_counting)

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_states),
                TEST(test_names),
                TEST(test_owners),
                TEST(test_registration),
                TEST(test_lockspaces),
                TEST(test_aliases),
                TEST(test_kinds),
                TEST(test_long_names),
                TEST(test_frames),
                TEST(test_death),
                TEST(test_unconfirmed),
                TEST(test_new_of_a_file),
                cmocka_unit_test(test_table),
        };

        return cmocka_run_group_tests(tests, set_up, tear_down);
}
