/* The filesystem's twin: stands between a process and libc's file operations below one directory (LD_PRELOAD).

   It makes operations fail, and it records them in one order, the engine's and SQLite's alike, so that a disk can be
   rebuilt that a power cut at any moment could have left. tests/torture/twin.py builds it, speaks to it and reads its
   recordings; the record and the faults' text are described there and here, and must agree.

   Order: every operation but a sync is done and recorded under one lock. A sync has a record before it begins and one
   after it ended: what was recorded before the first is covered by it, what came between the two may or may not be. */

#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_FDS 65536
#define MAX_RULES 256

/* The kinds; OPEN to READ are those that faults name. */
enum {
    K_OPEN = 1, K_WRITE, K_SYNC, K_SYNC_DIRECTORY, K_RENAME, K_TRUNCATE, K_UNLINK, K_MKDIR, K_RMDIR, K_ALLOCATE, K_READ,
    K_SYNC_END = 20, K_MARK = 21
};
static const char *const KIND_NAMES[] = {
    "", "open", "write", "sync", "sync_directory", "rename", "truncate", "unlink", "mkdir", "rmdir", "allocate", "read"
};

/* Flags of a record. */
enum { F_CREATED = 1, F_TRUNCATED = 2, F_LIED = 4, F_DSYNC = 8, F_DIRECTORY = 16 };

struct record {
    uint32_t size;          /* of all of it */
    uint16_t kind;
    uint16_t flags;
    int64_t result;         /* of the call, or a negative errno */
    uint64_t inode;
    int64_t position;       /* of a write; the new size of a truncate */
    uint64_t number;        /* of a sync: its begin and its end have the same */
    uint32_t path_bytes;
    uint32_t second_path_bytes;
    uint64_t data_bytes;
};

enum { ACT_COUNT, ACT_ERROR, ACT_SHORT, ACT_KILL_BEFORE, ACT_KILL_AFTER, ACT_LIE };

struct rule {
    int kind;               /* 0: every kind */
    char pattern[256];
    long from, times;
    int64_t begin, end;     /* reads: those of any of these bytes; end 0: of all */
    int action, error;
    long seen, fired;
};

struct open_file {
    char *path;             /* NULL: none of ours */
    uint64_t inode;
    int is_directory, dsync;
    int64_t reserved;       /* up to where room was allocated, beyond its size */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int record_fd = -1;
static struct open_file files[MAX_FDS];
static struct rule rules[MAX_RULES];
static int rule_count;
static int64_t room_bytes = -1;
static unsigned sync_delay_us;
static uint64_t sync_number;
static uint64_t random_state = 88172645463325252ull;

#define REAL(name) __typeof__(real_##name) function_##name = real_##name ? real_##name : (real_##name = dlsym(RTLD_NEXT, #name))
static int (*real_open64)(const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static ssize_t (*real_pwritev64v2)(int, const struct iovec *, int, off64_t, int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pread64)(int, void *, size_t, off64_t);
static ssize_t (*real_preadv64v2)(int, const struct iovec *, int, off64_t, int);
static ssize_t (*real_read)(int, void *, size_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate64)(int, off64_t);
static int (*real_fallocate64)(int, int, off64_t, off64_t);
static int (*real_posix_fallocate64)(int, off64_t, off64_t);
static int (*real_renameat)(int, const char *, int, const char *);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_mkdirat)(int, const char *, mode_t);

/* Paths */

/* The absolute path, when it is below the root; else an empty one. */
static const char *ours(int directory, const char *path, char *buffer) {
    buffer[0] = 0;
    if (!root_length || !path)
        return buffer;
    if (path[0] == '/') {
        if (strncmp(path, root, root_length))
            return buffer;
        snprintf(buffer, PATH_MAX, "%s", path);
    } else {
        char link[64];
        ssize_t length;
        if (directory == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        length = readlink(link, buffer, PATH_MAX / 2);
        if (length < 0)
            length = 0;
        snprintf(buffer + length, PATH_MAX - (size_t)length, "/%s", path);
    }
    if (strncmp(buffer, root, root_length) || (buffer[root_length] && buffer[root_length] != '/'))
        buffer[0] = 0;
    return buffer;
}

static struct open_file *tracked(int fd) {
    return fd >= 0 && fd < MAX_FDS && files[fd].path ? &files[fd] : NULL;
}

static void forget(int fd) {
    if (fd >= 0 && fd < MAX_FDS) {
        free(files[fd].path);
        files[fd].path = NULL;
    }
}

static uint64_t inode_at(const char *path) {
    struct stat64 status;
    return lstat64(path, &status) ? 0 : status.st_ino;
}

/* The recording */

static void record(int kind, int flags, int64_t result, uint64_t inode, int64_t position, uint64_t number,
                   const char *path, const char *second, const struct iovec *data, int count, size_t data_bytes) {
    struct iovec parts[4 + 64];
    struct record head = {0};
    size_t left = data_bytes;
    int used = 3;
    if (record_fd < 0)
        return;
    head.kind = (uint16_t)kind;
    head.flags = (uint16_t)flags;
    head.result = result;
    head.inode = inode;
    head.position = position;
    head.number = number;
    head.path_bytes = (uint32_t)strlen(path);
    head.second_path_bytes = (uint32_t)strlen(second);
    head.data_bytes = data_bytes;
    head.size = (uint32_t)(sizeof head + head.path_bytes + head.second_path_bytes + data_bytes);
    parts[0] = (struct iovec){&head, sizeof head};
    parts[1] = (struct iovec){(void *)path, head.path_bytes};
    parts[2] = (struct iovec){(void *)second, head.second_path_bytes};
    for (int i = 0; i < count && left && used < 68; i++) {
        size_t size = data[i].iov_len < left ? data[i].iov_len : left;
        parts[used++] = (struct iovec){data[i].iov_base, size};
        left -= size;
    }
    if (left || syscall(SYS_writev, record_fd, parts, used) != (long)head.size) {
        static const char message[] = "twin: the recording can't be written\n";
        syscall(SYS_write, 2, message, sizeof message - 1);
        abort();
    }
}

/* Faults */

/* What is to happen to this operation: NULL, or the rule that says so. Under the lock. */
static struct rule *fault_at(int kind, const char *path, int64_t begin, int64_t end) {
    struct rule *found = NULL;
    for (int i = 0; i < rule_count; i++) {
        struct rule *rule = &rules[i];
        if ((rule->kind && rule->kind != kind) || (!rule->kind && kind == K_READ))
            continue;
        if (fnmatch(rule->pattern, path, 0))
            continue;
        if (rule->end && (begin >= rule->end || end <= rule->begin))
            continue;
        rule->seen++;
        if (found || rule->action == ACT_COUNT || rule->seen < rule->from)
            continue;
        if (rule->times >= 0 && rule->seen >= rule->from + rule->times)
            continue;
        rule->fired++;
        found = rule;
    }
    if (found && found->action == ACT_KILL_BEFORE)
        kill(getpid(), SIGKILL);
    return found;
}

static struct rule *fault_of(int kind, const char *path) {
    return fault_at(kind, path, 0, INT64_MAX);
}

static void after(struct rule *rule) {
    if (rule && rule->action == ACT_KILL_AFTER)
        kill(getpid(), SIGKILL);
}

static int fails(struct rule *rule) {
    return rule && rule->action == ACT_ERROR;
}

/* Unlock, and give a call's outcome; errno as it was. */
static ssize_t leave(ssize_t result, int error) {
    pthread_mutex_unlock(&lock);
    if (result < 0)
        errno = error;
    return result;
}

/* Opening and closing */

static int open_common(int directory, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    struct stat64 status;
    struct rule *rule;
    int fd, error, existed, record_flags = 0;
    REAL(open64);
    if (!*ours(directory, path, full)) {
        fd = directory == AT_FDCWD || path[0] == '/'
            ? function_open64(path, flags, mode) : (int)syscall(SYS_openat, directory, path, flags, mode);
        if (fd >= 0 && root_length) {
            pthread_mutex_lock(&lock);
            forget(fd);
            pthread_mutex_unlock(&lock);
        }
        return fd;
    }
    pthread_mutex_lock(&lock);
    rule = fault_of(K_OPEN, full);
    if (fails(rule))
        return (int)leave(-1, rule->error);
    existed = inode_at(full) != 0;
    if (!existed && (flags & O_CREAT) && room_bytes == 0)
        return (int)leave(-1, ENOSPC);
    fd = function_open64(full, flags, mode);
    error = errno;
    if (fd >= 0) {
        forget(fd);
        if (fd < MAX_FDS && !fstat64(fd, &status)) {
            files[fd].path = strdup(full);
            files[fd].inode = status.st_ino;
            files[fd].is_directory = S_ISDIR(status.st_mode);
            files[fd].dsync = (flags & O_DSYNC) != 0;
            files[fd].reserved = 0;
            if (!existed)
                record_flags |= F_CREATED;
            if (existed && (flags & O_TRUNC))
                record_flags |= F_TRUNCATED;
            if (record_flags)
                record(K_OPEN, record_flags, 0, status.st_ino, 0, 0, full, "", NULL, 0, 0);
        }
    }
    after(rule);
    return (int)leave(fd, error);
}

#define MODE_OF(flags)                                                                                                 \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list arguments;                                                                                             \
        va_start(arguments, flags);                                                                                    \
        mode = va_arg(arguments, mode_t);                                                                              \
        va_end(arguments);                                                                                             \
    }

EXPORT int open(const char *path, int flags, ...) { MODE_OF(flags) return open_common(AT_FDCWD, path, flags, mode); }
EXPORT int open64(const char *path, int flags, ...) { MODE_OF(flags) return open_common(AT_FDCWD, path, flags, mode); }
EXPORT int openat(int directory, const char *path, int flags, ...) {
    MODE_OF(flags) return open_common(directory, path, flags, mode);
}
EXPORT int openat64(int directory, const char *path, int flags, ...) {
    MODE_OF(flags) return open_common(directory, path, flags, mode);
}
EXPORT int creat(const char *path, mode_t mode) {
    return open_common(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
EXPORT int creat64(const char *path, mode_t mode) { return creat(path, mode); }

EXPORT int close(int fd) {
    REAL(close);
    if (tracked(fd)) {
        pthread_mutex_lock(&lock);
        forget(fd);
        pthread_mutex_unlock(&lock);
    }
    return function_close(fd);
}

/* Writing */

static size_t bytes_of(const struct iovec *parts, int count) {
    size_t total = 0;
    for (int i = 0; i < count; i++)
        total += parts[i].iov_len;
    return total;
}

/* Up to where the file has room already. */
static int64_t room_end(int fd, const struct stat64 *status) {
    return status->st_size > files[fd].reserved ? status->st_size : files[fd].reserved;
}

/* How many of the bytes there is room for: a file that does not grow needs none. */
static size_t with_room(int fd, int64_t position, size_t size) {
    struct stat64 status;
    int64_t growth;
    if (room_bytes < 0 || fstat64(fd, &status))
        return size;
    growth = position + (int64_t)size - room_end(fd, &status);
    if (growth <= 0)
        return size;
    if (growth > room_bytes) {
        size = growth - room_bytes < (int64_t)size ? size - (size_t)(growth - room_bytes) : 0;
        growth = room_bytes;
    }
    room_bytes -= growth;
    return size;
}

/* position -1: where the file stands. The first `size` of the parts are written with one call. */
static ssize_t write_common(int fd, const struct iovec *parts, int count, int64_t position, int flags) {
    struct open_file *file;
    struct rule *rule;
    struct stat64 status;
    size_t total, size;
    ssize_t written;
    int error;
    REAL(pwrite64);
    REAL(write);
    REAL(pwritev64v2);
    pthread_mutex_lock(&lock);
    file = tracked(fd);
    if (!file)
        return leave(-1, EBADF);
    total = bytes_of(parts, count);
    if (position < 0) {
        position = fcntl(fd, F_GETFL) & O_APPEND ? (fstat64(fd, &status), status.st_size) : lseek64(fd, 0, SEEK_CUR);
        flags |= 1 << 30;
    }
    rule = fault_of(K_WRITE, file->path);
    if (fails(rule))
        return leave(-1, rule->error);
    size = with_room(fd, position, total);
    if (total && !size)
        return leave(-1, ENOSPC);
    if (rule && rule->action == ACT_SHORT && size > 1)
        size = (size + 1) / 2;
    if (size < total || (flags & 1 << 30)) {
        char *flat = malloc(total + 1);
        size_t at = 0;
        for (int i = 0; i < count; i++) {
            memcpy(flat + at, parts[i].iov_base, parts[i].iov_len);
            at += parts[i].iov_len;
        }
        written = flags & 1 << 30 ? function_write(fd, flat, size) : function_pwrite64(fd, flat, size, position);
        error = errno;
        free(flat);
    } else {
        written = function_pwritev64v2(fd, parts, count, position, flags);
        error = errno;
    }
    if (written > 0)
        record(K_WRITE, file->dsync || flags & RWF_DSYNC ? F_DSYNC : 0, written, file->inode, position, 0, file->path,
               "", parts, count, (size_t)written);
    after(rule);
    return leave(written, error);
}

EXPORT ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t position, int flags) {
    REAL(pwritev64v2);
    return tracked(fd) ? write_common(fd, parts, count, position, flags)
                       : function_pwritev64v2(fd, parts, count, position, flags);
}
EXPORT ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t position, int flags) {
    return pwritev64v2(fd, parts, count, position, flags);
}
EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t position) {
    return pwritev64v2(fd, parts, count, position, 0);
}
EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t position) {
    return pwritev64v2(fd, parts, count, position, 0);
}
EXPORT ssize_t pwrite64(int fd, const void *data, size_t size, off64_t position) {
    struct iovec part = {(void *)data, size};
    REAL(pwrite64);
    return tracked(fd) ? write_common(fd, &part, 1, position, 0) : function_pwrite64(fd, data, size, position);
}
EXPORT ssize_t pwrite(int fd, const void *data, size_t size, off_t position) {
    return pwrite64(fd, data, size, position);
}
EXPORT ssize_t write(int fd, const void *data, size_t size) {
    struct iovec part = {(void *)data, size};
    REAL(write);
    return tracked(fd) ? write_common(fd, &part, 1, -1, 0) : function_write(fd, data, size);
}
EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return tracked(fd) ? write_common(fd, parts, count, -1, 0) : function_writev(fd, parts, count);
}

/* Reading: not recorded */

/* Whether a read is to fail; errno is set then. A short one reads half: *size is changed. */
static int read_fails(int fd, size_t *size, int64_t position) {
    struct open_file *file;
    struct rule *rule = NULL;
    if (!tracked(fd) || !rule_count)
        return 0;
    pthread_mutex_lock(&lock);
    file = tracked(fd);
    if (file)
        rule = fault_at(K_READ, file->path, position < 0 ? 0 : position,
                        position < 0 ? INT64_MAX : position + (int64_t)*size);
    if (rule && rule->action == ACT_SHORT && *size > 1)
        *size = (*size + 1) / 2;
    leave(fails(rule) ? -1 : 0, rule ? rule->error : 0);
    return fails(rule);
}

EXPORT ssize_t pread64(int fd, void *to, size_t size, off64_t position) {
    REAL(pread64);
    return read_fails(fd, &size, position) ? -1 : function_pread64(fd, to, size, position);
}
EXPORT ssize_t pread(int fd, void *to, size_t size, off_t position) { return pread64(fd, to, size, position); }
EXPORT ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t position, int flags) {
    struct iovec first;
    REAL(preadv64v2);
    if (!tracked(fd) || count < 1)
        return function_preadv64v2(fd, parts, count, position, flags);
    first = parts[0];
    if (read_fails(fd, &first.iov_len, position))
        return -1;
    return first.iov_len < parts[0].iov_len ? function_preadv64v2(fd, &first, 1, position, flags)
                                            : function_preadv64v2(fd, parts, count, position, flags);
}
EXPORT ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t position, int flags) {
    return preadv64v2(fd, parts, count, position, flags);
}
EXPORT ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t position) {
    return preadv64v2(fd, parts, count, position, 0);
}
EXPORT ssize_t preadv(int fd, const struct iovec *parts, int count, off_t position) {
    return preadv64v2(fd, parts, count, position, 0);
}
EXPORT ssize_t read(int fd, void *to, size_t size) {
    REAL(read);
    return read_fails(fd, &size, -1) ? -1 : function_read(fd, to, size);
}

/* Syncing */

static void delay_sync(void) {
    struct timespec pause = {0, 0};
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    pause.tv_nsec = (long)(random_state % sync_delay_us) * 1000;
    nanosleep(&pause, NULL);
}

static int sync_common(int fd, int (*call)(int)) {
    struct open_file *file;
    struct rule *rule;
    char path[PATH_MAX];
    uint64_t inode, number;
    int result, error = 0, flags;
    pthread_mutex_lock(&lock);
    file = tracked(fd);
    if (!file)
        return (int)leave(-1, EBADF);
    flags = file->is_directory ? F_DIRECTORY : 0;
    rule = fault_of(flags ? K_SYNC_DIRECTORY : K_SYNC, file->path);
    snprintf(path, sizeof path, "%s", file->path);
    inode = file->inode;
    number = ++sync_number;
    record(K_SYNC, flags, 0, inode, 0, number, path, "", NULL, 0, 0);
    pthread_mutex_unlock(&lock);
    if (sync_delay_us)
        delay_sync();
    if (fails(rule)) {
        result = -1;
        error = rule->error;
    } else if (rule && rule->action == ACT_LIE) {
        result = 0;
        flags |= F_LIED;
    } else {
        result = call(fd);
        error = errno;
    }
    pthread_mutex_lock(&lock);
    record(K_SYNC_END, flags, result ? -error : 0, inode, 0, number, path, "", NULL, 0, 0);
    after(rule);
    return (int)leave(result, error);
}

EXPORT int fsync(int fd) {
    REAL(fsync);
    return tracked(fd) ? sync_common(fd, function_fsync) : function_fsync(fd);
}
EXPORT int fdatasync(int fd) {
    REAL(fdatasync);
    return tracked(fd) ? sync_common(fd, function_fdatasync) : function_fdatasync(fd);
}

/* Sizes */

EXPORT int ftruncate64(int fd, off64_t size) {
    struct open_file *file;
    struct rule *rule;
    int result, error;
    REAL(ftruncate64);
    if (!tracked(fd))
        return function_ftruncate64(fd, size);
    pthread_mutex_lock(&lock);
    file = tracked(fd);
    rule = fault_of(K_TRUNCATE, file->path);
    if (fails(rule))
        return (int)leave(-1, rule->error);
    result = function_ftruncate64(fd, size);
    error = errno;
    if (!result)
        record(K_TRUNCATE, 0, 0, file->inode, size, 0, file->path, "", NULL, 0, 0);
    after(rule);
    return (int)leave(result, error);
}
EXPORT int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int allocate_common(int fd, int mode, off64_t position, off64_t size, int (*call)(int, int, off64_t, off64_t),
                           int (*posix_call)(int, off64_t, off64_t)) {
    struct open_file *file;
    struct rule *rule;
    struct stat64 status;
    int64_t growth = 0;
    int result, error = 0;
    pthread_mutex_lock(&lock);
    file = tracked(fd);
    rule = fault_of(K_ALLOCATE, file->path);
    if (!fstat64(fd, &status) && position + size > room_end(fd, &status))
        growth = position + size - room_end(fd, &status);
    if (fails(rule) || (room_bytes >= 0 && growth > room_bytes)) {
        error = fails(rule) ? rule->error : ENOSPC;
        leave(-1, error);
        return posix_call ? error : -1;
    }
    result = posix_call ? posix_call(fd, position, size) : call(fd, mode, position, size);
    error = errno;
    if (!result) {
        files[fd].reserved = position + size > file->reserved ? position + size : file->reserved;
        if (room_bytes >= 0)
            room_bytes -= growth;
    }
    if (!result && !fstat64(fd, &status))
        record(K_ALLOCATE, 0, mode, file->inode, status.st_size, 0, file->path, "", NULL, 0, 0);
    after(rule);
    leave(result, error);
    return result;
}
EXPORT int fallocate64(int fd, int mode, off64_t position, off64_t size) {
    REAL(fallocate64);
    return tracked(fd) ? allocate_common(fd, mode, position, size, function_fallocate64, NULL)
                       : function_fallocate64(fd, mode, position, size);
}
EXPORT int fallocate(int fd, int mode, off_t position, off_t size) { return fallocate64(fd, mode, position, size); }
EXPORT int posix_fallocate64(int fd, off64_t position, off64_t size) {
    REAL(posix_fallocate64);
    return tracked(fd) ? allocate_common(fd, 0, position, size, NULL, function_posix_fallocate64)
                       : function_posix_fallocate64(fd, position, size);
}
EXPORT int posix_fallocate(int fd, off_t position, off_t size) { return posix_fallocate64(fd, position, size); }

/* Names */

EXPORT int renameat(int old_directory, const char *old_path, int new_directory, const char *new_path) {
    char from[PATH_MAX], to[PATH_MAX];
    struct rule *rule;
    uint64_t inode;
    int result, error;
    REAL(renameat);
    ours(old_directory, old_path, from);
    ours(new_directory, new_path, to);
    if (!*from || !*to)
        return function_renameat(old_directory, old_path, new_directory, new_path);
    pthread_mutex_lock(&lock);
    rule = fault_of(K_RENAME, from);
    if (fails(rule))
        return (int)leave(-1, rule->error);
    inode = inode_at(from);
    result = function_renameat(AT_FDCWD, from, AT_FDCWD, to);
    error = errno;
    if (!result) {
        for (int fd = 0; fd < MAX_FDS; fd++)
            if (files[fd].path && files[fd].inode == inode) {
                free(files[fd].path);
                files[fd].path = strdup(to);
            }
        record(K_RENAME, 0, 0, inode, 0, 0, from, to, NULL, 0, 0);
    }
    after(rule);
    return (int)leave(result, error);
}
EXPORT int rename(const char *old_path, const char *new_path) {
    return renameat(AT_FDCWD, old_path, AT_FDCWD, new_path);
}

EXPORT int unlinkat(int directory, const char *path, int flags) {
    char full[PATH_MAX];
    struct rule *rule;
    uint64_t inode;
    int result, error, kind = flags & AT_REMOVEDIR ? K_RMDIR : K_UNLINK;
    REAL(unlinkat);
    if (!*ours(directory, path, full))
        return function_unlinkat(directory, path, flags);
    pthread_mutex_lock(&lock);
    rule = fault_of(kind, full);
    if (fails(rule))
        return (int)leave(-1, rule->error);
    inode = inode_at(full);
    result = function_unlinkat(AT_FDCWD, full, flags);
    error = errno;
    if (!result)
        record(kind, 0, 0, inode, 0, 0, full, "", NULL, 0, 0);
    after(rule);
    return (int)leave(result, error);
}
EXPORT int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
EXPORT int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int remove(const char *path) {
    int result = unlinkat(AT_FDCWD, path, 0);
    return result && errno == EISDIR ? rmdir(path) : result;
}

EXPORT int mkdirat(int directory, const char *path, mode_t mode) {
    char full[PATH_MAX];
    struct rule *rule;
    int result, error;
    REAL(mkdirat);
    if (!*ours(directory, path, full))
        return function_mkdirat(directory, path, mode);
    pthread_mutex_lock(&lock);
    rule = fault_of(K_MKDIR, full);
    if (fails(rule))
        return (int)leave(-1, rule->error);
    if (room_bytes == 0 && !inode_at(full))
        return (int)leave(-1, ENOSPC);
    result = function_mkdirat(AT_FDCWD, full, mode);
    error = errno;
    if (!result)
        record(K_MKDIR, 0, 0, inode_at(full), 0, 0, full, "", NULL, 0, 0);
    after(rule);
    return (int)leave(result, error);
}
EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* What the harness calls */

/* Watch what happens below `directory` from now on; record it at the end of `recording` unless that is empty. */
EXPORT int twin_begin(const char *directory, const char *recording) {
    int fd = -1;
    REAL(open64);
    if (*recording) {
        fd = function_open64(recording, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
            return -errno;
    }
    pthread_mutex_lock(&lock);
    snprintf(root, sizeof root, "%s", directory);
    root_length = strlen(root);
    record_fd = fd;
    pthread_mutex_unlock(&lock);
    return 0;
}

/* Watch and record no more. */
EXPORT void twin_end(void) {
    REAL(close);
    pthread_mutex_lock(&lock);
    root_length = 0;
    for (int fd = 0; fd < MAX_FDS; fd++)
        forget(fd);
    if (record_fd >= 0)
        function_close(record_fd);
    record_fd = -1;
    pthread_mutex_unlock(&lock);
}

/* Put a line of the harness's own between the operations. */
EXPORT void twin_mark(const char *text) {
    struct iovec part = {(void *)text, strlen(text)};
    pthread_mutex_lock(&lock);
    record(K_MARK, 0, 0, 0, 0, 0, "", "", &part, 1, part.iov_len);
    pthread_mutex_unlock(&lock);
}

/* End the process with no operation done but not recorded. */
EXPORT void twin_exit(int status) {
    pthread_mutex_lock(&lock);
    _exit(status);
}

static int parse_word(struct rule *rule, const char *word) {
    static const char *const actions[] = {"count", "error", "short", "kill_before", "kill_after", "lie"};
    if (!strncmp(word, "kind=", 5)) {
        for (int kind = K_OPEN; kind <= K_READ; kind++)
            if (!strcmp(word + 5, KIND_NAMES[kind]))
                return rule->kind = kind, 0;
        return strcmp(word + 5, "any") ? -1 : 0;
    }
    if (!strncmp(word, "path=", 5))
        return snprintf(rule->pattern, sizeof rule->pattern, "%s", word + 5) < (int)sizeof rule->pattern ? 0 : -1;
    if (!strncmp(word, "from=", 5))
        return rule->from = atol(word + 5), 0;
    if (!strncmp(word, "bytes=", 6))
        return sscanf(word + 6, "%" SCNd64 "-%" SCNd64, &rule->begin, &rule->end) == 2 ? 0 : -1;
    if (!strncmp(word, "times=", 6))
        return rule->times = atol(word + 6), 0;
    if (!strncmp(word, "errno=", 6))
        return rule->action = ACT_ERROR, rule->error = atoi(word + 6), 0;
    if (!strncmp(word, "action=", 7))
        for (int action = ACT_COUNT; action <= ACT_LIE; action++)
            if (!strcmp(word + 7, actions[action]))
                return rule->action = action, 0;
    return -1;
}

/* Add a fault: "kind=sync path=*.log from=3 times=1 errno=5" (times -1: for good; action=short|kill_before|kill_after|
   lie|count in place of errno). Returns its number, or -1 when that can't be read. */
EXPORT int twin_fault(const char *text) {
    struct rule rule = {.pattern = "*", .from = 1, .times = 1};
    char copy[1024], *rest, *word;
    int number = -1;
    snprintf(copy, sizeof copy, "%s", text);
    for (word = strtok_r(copy, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        if (parse_word(&rule, word))
            return -1;
    pthread_mutex_lock(&lock);
    if (rule_count < MAX_RULES) {
        number = rule_count++;
        rules[number] = rule;
    }
    pthread_mutex_unlock(&lock);
    return number;
}

EXPORT void twin_clear_faults(void) {
    pthread_mutex_lock(&lock);
    rule_count = 0;
    room_bytes = -1;
    pthread_mutex_unlock(&lock);
}

EXPORT long twin_seen(int number) { return number >= 0 && number < rule_count ? rules[number].seen : -1; }
EXPORT long twin_fired(int number) { return number >= 0 && number < rule_count ? rules[number].fired : -1; }

/* So many bytes may files grow, then the disk is full; -1: no bound. */
EXPORT void twin_room(long long bytes) {
    pthread_mutex_lock(&lock);
    room_bytes = bytes;
    pthread_mutex_unlock(&lock);
}

/* Syncs take up to so long. */
EXPORT void twin_sync_delay(unsigned max_us, unsigned long long seed) {
    sync_delay_us = max_us;
    random_state ^= seed * 0x9e3779b97f4a7c15ull;
}

__attribute__((constructor)) static void start(void) {
    const char *directory = getenv("TWIN_ROOT"), *recording = getenv("TWIN_RECORD"), *faults = getenv("TWIN_FAULTS");
    char copy[8192], *rest, *fault;
    if (!directory)
        return;
    if (faults) {
        snprintf(copy, sizeof copy, "%s", faults);
        for (fault = strtok_r(copy, ";", &rest); fault; fault = strtok_r(NULL, ";", &rest))
            if (twin_fault(fault) < 0) {
                dprintf(2, "twin: not a fault: %s\n", fault);
                _exit(70);
            }
    }
    if (twin_begin(directory, recording ? recording : "") < 0) {
        dprintf(2, "twin: %s can't be written\n", recording);
        _exit(70);
    }
}
