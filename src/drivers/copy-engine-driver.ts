/** Makes a {@link CopyEngine} of a device: allocates and maps its rings, and releases them. */
import type { Device, Driver, ProbeContext } from '../bus/model.js';
import { lostDevice, type Mapping } from '../dma/mapping.js';
import { forPeople, throwFirst, undoAll } from '../errors.js';
import { nonsense, type Fields } from '../fields.js';
import type { ExternalMemory } from '../memory/external.js';
import { COPY_ENTRY } from '../vfio-user/devices/copy-engine-layout.js';
import type { Va } from '../units.js';
import type { CopyEngineLender } from './copy-engine-lending.js';
import { CopyEngine, type CopyEngineOptions, type CopyEngineRings, type RingMemory } from './copy-engine.js';

/** Entries of each ring: allows thousands of outstanding descriptors. */
const RING_ENTRIES = 4096;
const RING_BYTES = RING_ENTRIES * COPY_ENTRY.BYTES;

/** The two rings, in one mapping. */
class Rings implements Disposable {
  readonly #memory: ExternalMemory;
  readonly #mapping: Mapping;
  /** Threads that work on it. */
  #pins = 0;
  #isReleased = false;

  private constructor(memory: ExternalMemory, mapping: Mapping) {
    this.#memory = memory;
    this.#mapping = mapping;
  }

  static make(device: Device, { external }: ProbeContext): Rings {
    const memory = external.allocate(2 * RING_BYTES, { label: `rings of ${device.name}` });
    try {
      return new Rings(memory, device.dmaMap(memory));
    } catch (error) {
      memory.unregister();
      throw error;
    }
  }

  /** Those that another process has handed over. */
  static takeOver(device: Device, { external }: ProbeContext, state: Fields): Rings {
    const part = { va: state.number('va') as Va, length: 2 * RING_BYTES };
    const memory = external.find(part);
    const mapping = device.domain?.mappingsFor(device.name).find(({ va }) => va === part.va);
    if (memory === undefined || mapping === undefined) throw nonsense('takeOver', `no rings of ${device.name}`);
    return new Rings(memory, mapping);
  }

  get va(): Va {
    return this.#memory.va;
  }

  ring(index: 0 | 1): RingMemory {
    const offset = index * RING_BYTES;
    return { bytes: this.#memory.bytes(offset, RING_BYTES), iova: this.#mapping.iova + offset };
  }

  get both(): CopyEngineRings {
    return { descriptors: this.ring(0), completions: this.ring(1) };
  }

  vaOf(index: 0 | 1): number {
    return this.#memory.va + index * RING_BYTES;
  }

  /** What both are in. */
  get memory(): ExternalMemory {
    return this.#memory;
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

function optionsFor(device: Device): CopyEngineOptions {
  return { explain: (iova, access) => forPeople(() => device.explain(iova, 1, access).text) };
}

function lenderOf(device: Device, { shares, external }: ProbeContext, rings: Rings): CopyEngineLender {
  return {
    ...{ device, shares, external, memory: rings.memory },
    ...{ descriptors: rings.vaOf(0), completions: rings.vaOf(1), pin: () => rings.pin() },
  };
}

/** The driver of the embedded copy engine, on any bus. */
export const copyEngineDriver: Driver<CopyEngine> = {
  name: 'copy',
  keys: [],
  buses: ['vdev', 'vfio-user'],
  ids: [CopyEngine.matches],
  deviceClass: 'dma',
  async probe(device, context) {
    const rings = Rings.make(device, context);
    try {
      const engine = await CopyEngine.openLendable(
        device.access,
        rings.both,
        optionsFor(device),
        lenderOf(device, context, rings),
      );
      ringsOf.set(engine, rings);
      return engine;
    } catch (error) {
      undoAll([() => rings[Symbol.dispose]()]);
      throw error;
    }
  },
  async handOver(_, engine, why) {
    const paused = await engine.handOver(why);
    return { ...paused, state: { ...paused.state, va: ringsOf.get(engine)?.va } };
  },
  takeOver(device, context, state) {
    const rings = Rings.takeOver(device, context, state);
    const engine = CopyEngine.takeOver(
      device.access,
      rings.both,
      optionsFor(device),
      state,
      lenderOf(device, context, rings),
    );
    ringsOf.set(engine, rings);
    return { instance: engine };
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
