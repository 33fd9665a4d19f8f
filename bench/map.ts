/**
 * What a mapping costs through the whole stack, and what it costs when much is mapped already: `device.dmaMap` and `unmap`
 * of one page on a device whose own part is to do nothing. Each number of live mappings has a thread with a heap of its
 * own, so that it bears the garbage collections that it causes. What a thread has mapped goes with the process.
 */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { measure, type Effort, type Result } from './harness/harness.js';
import type { MapTask } from './map-thread.js';

/**
 * Ways to map. The one more goes to `spots` different pages in turn: few enough that what they need stays in the processor's
 * cache, so that the growth is that of the work; and then so many that it does not, which adds the waiting for memory.
 */
const WAYS: readonly (Pick<MapTask, 'kind' | 'spots'> & { readonly name: string })[] = [
  { name: 'VA = IOVA', kind: 'VA = IOVA', spots: 64 },
  { name: 'allocated IOVA', kind: 'allocated IOVA', spots: 64 },
  { name: 'shared', kind: 'shared', spots: 64 },
  { name: 'VA = IOVA, cold', kind: 'VA = IOVA', spots: 1024 },
];

/** Measures map and unmap. */
export async function benchMap({ quick, progress }: Effort): Promise<Result[]> {
  const sizes = quick ? [10, 10_000] : [10, 100, 1_000, 10_000, 100_000];
  const count = quick ? 1000 : 2000;
  const rounds = quick ? { warmUp: 8, measured: 9 } : { warmUp: 20, measured: 31 };
  const results: Result[] = [];
  for (const { name: way, kind, spots } of WAYS) {
    progress(`map: ${way}, ${sizes.map((live) => live.toLocaleString('en')).join(', ')} live`);
    const name = (live: number): string => `map + unmap, ${way}, ${live.toLocaleString('en')} live`;
    const threads: Worker[] = [];
    try {
      for (const live of sizes) threads.push(await startThread({ kind, live, spots, count }));
      const cases = sizes.map((live, i) => ({
        name: name(live),
        unit: '/s' as const,
        count,
        ...(i === 0 ? {} : { to: name(sizes[0]) }),
        round: async () => {
          threads[i].postMessage('round');
          return answer(threads[i]);
        },
      }));
      results.push(...(await measure(cases, rounds)));
    } finally {
      await Promise.all(threads.map((thread) => thread.terminate()));
    }
  }
  return results;
}

/** A thread that has made its live mappings. */
async function startThread(task: MapTask): Promise<Worker> {
  const thread = new Worker(new URL('./map-thread.js', import.meta.url), { workerData: task });
  await answer(thread);
  return thread;
}

async function answer(thread: Worker): Promise<number> {
  const [ms] = (await once(thread, 'message')) as [number];
  return ms;
}
