/* Threads that stay between calls and share the work of any number of callers. */
#ifndef ADAMAS_POOL_H
#define ADAMAS_POOL_H

/* The number of threads of a call that names none: ADAMAS_NUM_THREADS, OMP_NUM_THREADS, or the
   processors that this process may use. adamas_pool_limit changes it; 0 goes back to this. */
int adamas_pool_threads(void);
void adamas_pool_limit(int threads);

/* Calls share(context) on the calling thread, and on up to threads - 1 others that are free. Returns
   when all of them have returned. */
void adamas_pool_run(void (*share)(void *context), void *context, int threads);

#endif
