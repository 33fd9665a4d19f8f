/**
 * The controller memory buffer: memory of the controller, in a region of its own, in which the host may put queues, lists and
 * data (NVM Express Base Specification 1.4, section 4.7). The host chooses the addresses by which commands name it.
 */
import { CMB } from '../../../nvme/registers.js';
import type { DeviceDma, ModelHost } from '../model.js';

/** The region, a BAR. */
export const BUFFER_REGION = 2;

/** CMBLOC: the region, from its beginning on; queues, lists and data may be there and elsewhere in any mixture. */
const LOCATION = BUFFER_REGION | 0x1f8;
const UNIT = 4096;
/** CMBMSC: where the address is, in the low word. */
const BASE_MASK = 0xfffff000;

/** The buffer, and its registers. Accesses of the device to it do not reach the host's memory. */
export class MemoryBuffer implements DeviceDma {
  readonly #host: ModelHost;
  readonly #size: number;
  /** CMBMSC */
  #low = 0;
  #high = 0;

  /** @param size bytes */
  constructor(host: ModelHost, size: number) {
    this.#host = host;
    this.#size = size;
  }

  /** CMBLOC, once the host has asked for it. */
  get location(): number {
    return (this.#low & CMB.CRE) === 0 ? 0 : LOCATION;
  }

  /** CMBSZ, once the host has asked for it. */
  get size(): number {
    if ((this.#low & CMB.CRE) === 0) return 0;
    return (CMB.SQS | CMB.CQS | CMB.LISTS | CMB.RDS | CMB.WDS | ((this.#size / UNIT) << 12)) >>> 0;
  }

  /** The words of CMBMSC. */
  get control(): readonly [low: number, high: number] {
    return [this.#low >>> 0, this.#high >>> 0];
  }

  setControl(word: 0 | 1, value: number): void {
    if (word === 0) this.#low = value & (BASE_MASK | CMB.CRE | CMB.CMSE);
    else this.#high = value;
  }

  /** The device is reset; a reset of the controller leaves the registers. */
  reset(): void {
    this.#low = 0;
    this.#high = 0;
  }

  direct(iova: number, length: number, access: 'read' | 'write'): Uint8Array | undefined {
    return this.#at(iova, length) ?? this.#host.dma.direct(iova, length, access);
  }

  address(iova: number, length: number, access: 'read' | 'write'): number {
    // Of its own memory it has a view only.
    return this.#at(iova, length) === undefined ? (this.#host.dma.address?.(iova, length, access) ?? -1) : -1;
  }

  read(iova: number, into: Uint8Array): Promise<void> | undefined {
    const own = this.#at(iova, into.length);
    if (own === undefined) return this.#host.dma.read(iova, into);
    into.set(own);
    return undefined;
  }

  write(iova: number, from: Uint8Array): Promise<void> | undefined {
    const own = this.#at(iova, from.length);
    if (own === undefined) return this.#host.dma.write(iova, from);
    own.set(from);
    return undefined;
  }

  /** The bytes of the buffer that have these addresses, if all of them do. */
  #at(iova: number, length: number): Uint8Array | undefined {
    if ((this.#low & CMB.CMSE) === 0) return undefined;
    const from = iova - ((this.#high >>> 0) * 2 ** 32 + ((this.#low & BASE_MASK) >>> 0));
    if (from < 0 || from + length > this.#size) return undefined;
    return this.#host.regionMemory(BUFFER_REGION, 0).subarray(from, from + length);
  }
}
