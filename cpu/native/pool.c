/* One list of regions: a region is the work of one call. A worker that is free takes a place in the
   first one. A caller works too, and takes its region off the list as soon as it has nothing left to
   do. So no caller waits for a worker that has not begun. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { MOST_THREADS = 1024, SPINS = 8000 }; /* about 120 us, from one call of a step to the next */

struct region {
  void (*share)(void *);
  void *context;
  int places; /* of other threads, that are still free */
  atomic_int busy;
  struct region *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t posted = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct region *first;
static int workers, asleep, waiting;
static atomic_uint posts; /* how many regions there were, so that workers see a new one */
static atomic_int limit;

static void pause_briefly(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void remove_region(struct region *region) {
  for (struct region **at = &first; *at; at = &(*at)->next)
    if (*at == region) {
      *at = region->next;
      return;
    }
}

/* A place in the first region, or NULL. The lock is held. */
static struct region *take_place(void) {
  struct region *region = first;
  if (region) {
    atomic_fetch_add(&region->busy, 1);
    if (--region->places == 0) first = region->next;
  }
  return region;
}

static void *work(void *unused) {
  (void)unused;
  pthread_mutex_lock(&lock);
  for (;;) {
    struct region *region = take_place();
    if (!region) {
      unsigned seen = atomic_load(&posts);
      pthread_mutex_unlock(&lock);
      for (int i = 0; i < SPINS && atomic_load_explicit(&posts, memory_order_relaxed) == seen; i++)
        pause_briefly();
      pthread_mutex_lock(&lock);
      if (atomic_load(&posts) == seen) {
        asleep++;
        pthread_cond_wait(&posted, &lock);
        asleep--;
      }
      continue;
    }
    pthread_mutex_unlock(&lock);
    region->share(region->context);
    pthread_mutex_lock(&lock);
    /* After this the region may be gone: it lives on the caller's stack. */
    if (atomic_fetch_sub(&region->busy, 1) == 1 && waiting) pthread_cond_broadcast(&done);
  }
  return NULL;
}

static void hold(void) { pthread_mutex_lock(&lock); }
static void release(void) { pthread_mutex_unlock(&lock); }

/* A forked process has the thread that forked and no other. */
static void begin_anew(void) {
  pthread_mutex_init(&lock, NULL);
  pthread_cond_init(&posted, NULL);
  pthread_cond_init(&done, NULL);
  first = NULL;
  workers = asleep = waiting = 0;
}

static void prepare(void) { pthread_atfork(hold, release, begin_anew); }

/* Start workers until there are `count`. The lock is held. */
static void start_workers(int count) {
  sigset_t all, before;
  pthread_attr_t attributes;
  if (workers >= count || pthread_attr_init(&attributes)) return;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  sigfillset(&all); /* signals go to the threads of the program */
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (workers < count) {
    pthread_t thread;
    if (pthread_create(&thread, &attributes, work, NULL)) break;
    workers++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
}

void adamas_pool_run(void (*share)(void *), void *context, int threads) {
  struct region region = {share, context, threads - 1, 0, NULL};
  if (threads <= 1) {
    share(context);
    return;
  }
  pthread_once(&once, prepare);
  pthread_mutex_lock(&lock);
  start_workers((threads < MOST_THREADS ? threads : MOST_THREADS) - 1);
  struct region **last = &first;
  while (*last) last = &(*last)->next;
  *last = &region;
  atomic_fetch_add(&posts, 1);
  for (int i = 0; i < asleep && i < threads - 1; i++) pthread_cond_signal(&posted);
  pthread_mutex_unlock(&lock);

  share(context);

  pthread_mutex_lock(&lock);
  if (region.places > 0) remove_region(&region);
  pthread_mutex_unlock(&lock);
  for (int i = 0; i < SPINS && atomic_load_explicit(&region.busy, memory_order_relaxed); i++)
    pause_briefly();
  pthread_mutex_lock(&lock);
  waiting++;
  while (atomic_load(&region.busy)) pthread_cond_wait(&done, &lock);
  waiting--;
  pthread_mutex_unlock(&lock);
}

static int number_in(const char *name) {
  const char *text = getenv(name);
  long number = text ? strtol(text, NULL, 10) : 0;
  return number < 1 ? 0 : number > MOST_THREADS ? MOST_THREADS : (int)number;
}

static int find_threads(void) {
  int number = number_in("ADAMAS_NUM_THREADS");
  if (!number) number = number_in("OMP_NUM_THREADS");
#ifdef __linux__
  cpu_set_t set;
  if (!number && !sched_getaffinity(0, sizeof set, &set)) number = CPU_COUNT(&set);
#endif
  if (!number) number = (int)sysconf(_SC_NPROCESSORS_ONLN);
  return number < 1 ? 1 : number > MOST_THREADS ? MOST_THREADS : number;
}

int adamas_pool_threads(void) {
  int number = atomic_load(&limit);
  if (!number) {
    number = find_threads();
    atomic_store(&limit, number);
  }
  return number;
}

void adamas_pool_limit(int threads) {
  atomic_store(&limit, threads < 0 ? 0 : threads > MOST_THREADS ? MOST_THREADS : threads);
}
