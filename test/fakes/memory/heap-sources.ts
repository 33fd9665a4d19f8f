/** For tests of code that uses heaps: the memory of one `Eal`, without devices, on a machine with simulated hugepages. */
import assert from 'node:assert/strict';
import { briefStep } from '../../../src/long-work.js';
import { openPlatform } from '../../../src/platform/open.js';
import type { Platform } from '../../../src/platform/ports.js';
import { trackingPlatform, type TrackingPlatform } from '../platform/platforms.js';
import { MiB } from '../../../src/units.js';
import type { Area } from '../../../src/memory/area.js';
import { AreaIndex } from '../../../src/memory/area-index.js';
import { External } from '../../../src/memory/external.js';
import type { HeapSources } from '../../../src/memory/owned/heap-choice.js';
import { Heaps } from '../../../src/memory/heap/heaps.js';
import { decideIovaMode, type IovaMode } from '../../../src/memory/iova-mode.js';
import { MemoryHandlers } from '../../../src/memory/memory-events.js';
import { memorySettings, type MemoryOptions } from '../../../src/memory/owned/memory-settings.js';
import { OwnedMemory } from '../../../src/memory/owned/owned.js';
import { fakeHugePages, type FakePages } from './hugepages.js';

/** {@link testSources} */
export interface TestSources extends HeapSources {
  readonly platform: Platform;
  readonly external: External;
  readonly areas: AreaIndex;
  readonly handlers: MemoryHandlers;
  /** Frees everything, and checks that nothing is left. */
  close(): void;
}

/** Options of {@link testSources}. */
export interface TestSourcesOptions {
  readonly pages?: readonly FakePages[];
  readonly memory?: MemoryOptions;
  readonly mode?: IovaMode;
  readonly wrap?: (platform: TrackingPlatform) => Platform;
}

/** Memory as an `Eal` has it. */
export function testSources(options: TestSourcesOptions = {}): TestSources {
  const { pages = [{ pageSize: 2 * MiB, pages: [256] }], mode = 'va', wrap } = options;
  const tracking = trackingPlatform(openPlatform());
  const platform = fakeHugePages(wrap?.(tracking) ?? tracking, pages);
  const areas = new AreaIndex();
  const handlers = new MemoryHandlers();
  const reach = (_areas: readonly Area[]) => briefStep(() => undefined);
  const own = { platform, areas, handlers, reach, reachAsync: async (wanted: readonly Area[]) => reach(wanted) };
  const memory = new OwnedMemory({
    ...own,
    settings: memorySettings({ onNotice: () => undefined, ...options.memory }),
    decideIova: () => decideIovaMode({ forced: mode, votes: [], physicalAddresses: true, iommu: true }),
  });
  memory.start();
  const heaps = new Heaps({ ...own, iovaMode: () => mode, origins: false, native: () => memory.heaps });
  const external = new External(platform, areas);
  const close = (): void => {
    assert.deepEqual([...heaps.close(), ...memory.close()], []);
    for (const each of [...external]) each.unregister();
    assert.equal(areas.size, 0);
    assert.deepEqual(tracking.leaks(), []);
  };
  return { memory, heaps, platform, external, areas, handlers, close };
}
