/** The device's side of virtio rings: it takes what is available, writes down what a driver must not do, and can do wrong itself. */
import { DESCRIPTOR, DESCRIPTOR_BYTES, EVENTS, PACKED, QUIET } from '../../../src/drivers/virtio-net/layout.js';
import type { DeviceDma } from '../../../src/vfio-user/devices/model.js';

/** One buffer of a chain. */
export interface FakeBuffer {
  readonly iova: number;
  readonly bytes: number;
  readonly isWritten: boolean;
}

/** A chain that the device has. */
export interface FakeChain {
  readonly id: number;
  readonly buffers: readonly FakeBuffer[];
}

/** Where a ring is. */
export interface FakeRingParts {
  readonly size: number;
  readonly descriptors: number;
  readonly driver: number;
  readonly device: number;
}

/** Memory of the driver, as the device reaches it. */
export class FakeMemory {
  readonly #dma: DeviceDma;
  readonly #violations: string[];

  constructor(dma: DeviceDma, violations: string[]) {
    this.#dma = dma;
    this.#violations = violations;
  }

  /** Reads; what can not be reached is zeros, and a violation. */
  read(iova: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    try {
      void this.#dma.read(iova, bytes);
    } catch (error) {
      this.#violations.push(error instanceof Error ? error.message : String(error));
    }
    return bytes;
  }

  write(iova: number, bytes: Uint8Array): void {
    try {
      void this.#dma.write(iova, bytes);
    } catch (error) {
      this.#violations.push(error instanceof Error ? error.message : String(error));
    }
  }

  read16(iova: number): number {
    const [low, high] = this.read(iova, 2);
    return low | (high << 8);
  }

  read32(iova: number): number {
    return this.read16(iova) + this.read16(iova + 2) * 0x1_0000;
  }

  write16(iova: number, value: number): void {
    this.write(iova, Uint8Array.of(value, value >> 8));
  }

  write32(iova: number, value: number): void {
    this.write(iova, Uint8Array.of(value, value >>> 8, value >>> 16, value >>> 24));
  }
}

/** A ring. */
export abstract class FakeRing {
  /** Chains that the device has, in their order. */
  readonly chains: FakeChain[] = [];
  readonly parts: FakeRingParts;
  protected readonly memory: FakeMemory;
  protected readonly violations: string[];

  constructor(parts: FakeRingParts, memory: FakeMemory, violations: string[]) {
    this.parts = parts;
    this.memory = memory;
    this.violations = violations;
  }

  /** Takes all that is available. */
  abstract fetch(): void;
  /** Gives chains back; the driver sees all of them at once. */
  abstract giveBack(used: readonly { readonly id: number; readonly written: number }[]): void;
  /** Does the driver want to be interrupted? */
  abstract get wantsInterrupts(): boolean;
  /** Asks the driver not to tell what is available. */
  abstract setQuiet(on: boolean): void;

  protected take(id: number, buffers: readonly FakeBuffer[]): void {
    const written = buffers.findIndex(({ isWritten }) => isWritten);
    if (written >= 0 && buffers.slice(written).some(({ isWritten }) => !isWritten))
      this.violations.push('a buffer that is read behind one that is written');
    if (buffers.some(({ bytes }) => bytes === 0)) this.violations.push('an empty buffer');
    if (this.chains.some((chain) => chain.id === id)) this.violations.push(`chain ${id} twice`);
    const [first] = buffers;
    if (first.isWritten && this.chains.some((chain) => chain.buffers[0].iova === first.iova))
      this.violations.push(`the buffer ${first.iova} twice`);
    this.chains.push({ id, buffers });
  }

  protected bufferAt(at: number): FakeBuffer & { readonly next: number; readonly flags: number; readonly id: number } {
    const words = new Uint32Array(this.memory.read(at, DESCRIPTOR_BYTES).buffer);
    const flags = words[3];
    return {
      iova: words[0] + words[1] * 2 ** 32,
      bytes: words[2],
      isWritten: (flags & 0xffff & DESCRIPTOR.WRITE) !== 0,
      next: flags >>> 16,
      flags: flags & 0xffff,
      id: flags & 0xffff,
    };
  }
}

/** A split ring. */
export class FakeSplitRing extends FakeRing {
  #taken = 0;
  /** The index of used chains. */
  index = 0;

  fetch(): void {
    const { driver, size, descriptors } = this.parts;
    const index = this.memory.read16(driver + 2);
    const came = (index - this.#taken) & 0xffff;
    if (came > size) this.violations.push(`the available index went from ${this.#taken} to ${index}`);
    for (let i = 0; i < Math.min(came, size); i++) {
      const head = this.memory.read16(driver + 4 + 2 * (this.#taken % size));
      this.#taken = (this.#taken + 1) & 0xffff;
      const buffers: FakeBuffer[] = [];
      for (let at = head, more = true; more;) {
        if (at >= size || buffers.length >= size) {
          this.violations.push(`descriptor ${at} of ${size}`);
          break;
        }
        const buffer = this.bufferAt(descriptors + at * DESCRIPTOR_BYTES);
        buffers.push(buffer);
        more = (buffer.flags & DESCRIPTOR.NEXT) !== 0;
        at = buffer.next;
      }
      this.take(head, buffers);
    }
  }

  giveBack(used: readonly { readonly id: number; readonly written: number }[]): void {
    const { device, size } = this.parts;
    for (const { id, written } of used) {
      const at = device + 4 + 8 * (this.index % size);
      this.memory.write32(at, id);
      this.memory.write32(at + 4, written);
      this.index = (this.index + 1) & 0xffff;
      const there = this.chains.findIndex((chain) => chain.id === id);
      if (there >= 0) this.chains.splice(there, 1);
    }
    this.show();
  }

  /** Writes the index. */
  show(): void {
    this.memory.write16(this.parts.device + 2, this.index);
  }

  get wantsInterrupts(): boolean {
    return (this.memory.read16(this.parts.driver) & QUIET) === 0;
  }

  setQuiet(on: boolean): void {
    this.memory.write16(this.parts.device, on ? QUIET : 0);
  }
}

/** A packed ring. */
export class FakePackedRing extends FakeRing {
  #next = 0;
  #wrap = true;
  #used = 0;
  #usedWrap = true;
  readonly #counts = new Map<number, number>();

  #at(slot: number): number {
    return this.parts.descriptors + slot * DESCRIPTOR_BYTES;
  }

  fetch(): void {
    const { size } = this.parts;
    for (;;) {
      const flags = this.memory.read16(this.#at(this.#next) + 14);
      const isAvailable =
        ((flags & PACKED.AVAILABLE) !== 0) === this.#wrap && ((flags & PACKED.USED) !== 0) !== this.#wrap;
      if (!isAvailable) return;
      const buffers: FakeBuffer[] = [];
      let id = 0;
      for (let more = true; more;) {
        if (buffers.length >= size) {
          this.violations.push('a chain that does not end');
          break;
        }
        const at = this.#at(this.#next);
        const own = this.memory.read16(at + 14);
        const { iova, bytes } = this.bufferAt(at);
        if (((own & PACKED.AVAILABLE) !== 0) !== this.#wrap || ((own & PACKED.USED) !== 0) === this.#wrap)
          this.violations.push(`descriptor ${this.#next} of a chain is not available`);
        buffers.push({ iova, bytes, isWritten: (own & DESCRIPTOR.WRITE) !== 0 });
        id = this.memory.read16(at + 12);
        more = (own & DESCRIPTOR.NEXT) !== 0;
        if (++this.#next === size) {
          this.#next = 0;
          this.#wrap = !this.#wrap;
        }
      }
      this.#counts.set(id, buffers.length);
      this.take(id, buffers);
    }
  }

  giveBack(used: readonly { readonly id: number; readonly written: number }[]): void {
    const { size } = this.parts;
    let first: { readonly at: number; readonly flags: number } | undefined;
    for (const { id, written } of used) {
      const at = this.#at(this.#used);
      this.memory.write32(at + 8, written);
      this.memory.write16(at + 12, id);
      const flags = this.#usedWrap ? PACKED.AVAILABLE | PACKED.USED : 0;
      // The first is shown last, so that the driver sees all at once.
      if (first === undefined) first = { at, flags };
      else this.memory.write16(at + 14, flags);
      this.#used += this.#counts.get(id) ?? 1;
      if (this.#used >= size) {
        this.#used -= size;
        this.#usedWrap = !this.#usedWrap;
      }
      const there = this.chains.findIndex((chain) => chain.id === id);
      if (there >= 0) this.chains.splice(there, 1);
    }
    if (first !== undefined) this.memory.write16(first.at + 14, first.flags);
  }

  get wantsInterrupts(): boolean {
    return this.memory.read16(this.parts.driver + 2) !== EVENTS.OFF;
  }

  setQuiet(on: boolean): void {
    this.memory.write16(this.parts.device + 2, on ? EVENTS.OFF : EVENTS.ON);
  }
}
