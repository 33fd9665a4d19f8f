/**
 * One thread of the map benchmark: makes so many mappings, says 0 when they are there, and then measures a round for each
 * message, which it answers with the milliseconds.
 *
 * The live mappings, and the pages of the one more, are spread evenly over one large area; no page of it is ever touched.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { Eal, type ExternalMemory } from '../src/index.js';
import { benchBus, benchDriver } from './harness/bus.js';
import { timeWork } from './harness/harness.js';
import type { MemoryPart } from '../src/memory/part.js';

/** What a thread is to do. */
export interface MapTask {
  /** Where the IOVA comes from; `shared`: another device of the same domain has the page mapped already. */
  readonly kind: 'VA = IOVA' | 'allocated IOVA' | 'shared';
  /** Mappings that are there all the time. */
  readonly live: number;
  /** Different pages that the one more goes to, in turn. */
  readonly spots: number;
  /** Pairs of map and unmap a round. */
  readonly count: number;
}

const PAGE = 4096;
/** Pages of the area: room for the most live mappings on its even pages; the odd ones are for the one more. */
const PAGES = 2 ** 18;

const { kind, live, spots, count } = workerData as MapTask;
const eal = await Eal.start({ buses: [benchBus()], drivers: [benchDriver] });
const memory = eal.external.allocate(PAGES * PAGE);
const device = await eal.probe(`bench:first,iovas=${kind === 'allocated IOVA' ? 'low' : 'any'}`);
const pages = spread(live);
for (const page of pages) device.dmaMap(pageOf(memory, page));

let next = 0;
const mapper = kind === 'shared' ? await eal.probe(`bench:second,iovas=any,domain=${device.name}`) : device;
const targets = kind === 'shared' ? some(pages) : spread(spots).map((page) => page + 1);
const ranges = targets.map((page) => pageOf(memory, page));
parentPort?.on('message', () => {
  const ms = timeWork(() => {
    for (let i = 0; i < count; i++) {
      mapper.dmaMap(ranges[next]).unmap();
      next = (next + 1) % ranges.length;
    }
  });
  parentPort?.postMessage(ms);
});
parentPort?.postMessage(0);

function pageOf({ va }: ExternalMemory, page: number): MemoryPart {
  return { va: va + page * PAGE, length: PAGE };
}

/** So many even pages, evenly over the area. */
function spread(howMany: number): number[] {
  return Array.from({ length: howMany }, (_, i) => Math.floor((i * (PAGES / 2)) / howMany) * 2);
}

/** At most as many as there are spots, evenly over `all`. */
function some(all: readonly number[]): number[] {
  const length = Math.min(spots, all.length);
  return Array.from({ length }, (_, i) => all[Math.floor((i * all.length) / length)]);
}
