/* Holds each sync up to a time, as a slower disk would: HELD_SYNC_US microseconds, 1,500 if it is not said.
 *
 *     cc -O2 -shared -fPIC -o target/held_sync.so benches/peers/held_sync.c
 *     LD_PRELOAD=$PWD/target/held_sync.so cargo bench -p coral-benches --bench durability -- durable
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int held(const char *name, int file) {
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *said = getenv("HELD_SYNC_US");
    long long until = now_ns() + (said ? atoll(said) : 1500) * 1000LL;
    int outcome = sync(file);
    long long left = until - now_ns();
    if (left > 0) {
        struct timespec rest = {left / 1000000000LL, left % 1000000000LL};
        nanosleep(&rest, NULL);
    }
    return outcome;
}

int fdatasync(int file) { return held("fdatasync", file); }
int fsync(int file) { return held("fsync", file); }
