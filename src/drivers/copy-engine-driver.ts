/** Makes a {@link CopyEngine} of a device: allocates and maps its rings, and releases them. */
import type { Device, Driver } from '../bus/model.js';
import { lostDevice, type Mapping } from '../dma/mapping.js';
import { forPeople, throwFirst, undoAll } from '../errors.js';
import type { External, ExternalMemory } from '../memory/external.js';
import { COPY_ENTRY } from '../vfio-user/devices/copy-engine-layout.js';
import { CopyEngine, type RingMemory } from './copy-engine.js';

/** Entries of each ring: allows thousands of outstanding descriptors. */
const RING_ENTRIES = 4096;

/** The two rings, in one mapping. */
class Rings implements Disposable {
  readonly #memory: ExternalMemory;
  readonly #mapping: Mapping;
  readonly #ringBytes = RING_ENTRIES * COPY_ENTRY.BYTES;
  /** Threads that work on it. */
  #pins = 0;
  #isReleased = false;

  constructor(device: Device, external: External) {
    this.#memory = external.allocate(2 * this.#ringBytes, { label: `rings of ${device.name}` });
    try {
      this.#mapping = device.dmaMap(this.#memory);
    } catch (error) {
      this.#memory.unregister();
      throw error;
    }
  }

  ring(index: 0 | 1): RingMemory {
    const offset = index * this.#ringBytes;
    return { bytes: this.#memory.bytes(offset, this.#ringBytes), iova: this.#mapping.iova + offset };
  }

  vaOf(index: 0 | 1): number {
    return this.#memory.va + index * this.#ringBytes;
  }

  /** Keeps it while another thread can reach it. */
  pin(): Disposable {
    this.#pins++;
    let isPinned = true;
    return {
      [Symbol.dispose]: () => {
        if (!isPinned) return;
        isPinned = false;
        this.#pins--;
        if (this.#isReleased) this.#release();
      },
    };
  }

  [Symbol.dispose](): void {
    this.#isReleased = true;
    this.#release();
  }

  #release(): void {
    if (this.#pins > 0) return;
    const errors = undoAll([() => this.#mapping[Symbol.dispose](), () => this.#memory[Symbol.dispose]()]);
    throwFirst(errors, 'rings');
  }
}

const ringsOf = new WeakMap<CopyEngine, Rings>();

/** The driver of the embedded copy engine, on any bus. */
export const copyEngineDriver: Driver<CopyEngine> = {
  name: 'copy',
  keys: [],
  buses: ['vdev', 'vfio-user'],
  ids: [CopyEngine.matches],
  deviceClass: 'dma',
  async probe(device, { external, shares }) {
    const rings = new Rings(device, external);
    const explain = (iova: number, access: 'read' | 'write'): string | undefined =>
      forPeople(() => device.explain(iova, 1, access).text);
    try {
      const engine = await CopyEngine.open(
        device.access,
        { descriptors: rings.ring(0), completions: rings.ring(1) },
        { explain },
        { device, shares, descriptors: rings.vaOf(0), completions: rings.vaOf(1), pin: () => rings.pin() },
      );
      ringsOf.set(engine, rings);
      return engine;
    } catch (error) {
      undoAll([() => rings[Symbol.dispose]()]);
      throw error;
    }
  },
  mayRemove: (_device, engine) => engine.mustBeFree('remove'),
  async remove(device, engine) {
    try {
      const { lost } = device;
      await engine.close(lost === undefined ? undefined : lostDevice('copyEngine', device.name, lost));
    } finally {
      ringsOf.get(engine)?.[Symbol.dispose]();
    }
  },
};
