/**
 * The initialization that a PCI function needs before its regions can be accessed and it may do DMA. QEMU's vfio-user
 * server refuses region accesses until the base address registers have addresses and memory decoding is enabled.
 */
import { alignUp } from '../../units.js';
import type { VfioUserClient } from '../../vfio-user/client.js';
import { PCI_REGION } from '../device-access.js';

// Type 0 configuration header (PCI Local Bus Specification 3.0, 6.1 and 6.2).
const COMMAND = 0x04;
const BAR0 = 0x10;
const COMMAND_MEMORY_AND_MASTER = 0x6;
const BAR_IO = 0x1;
const BAR_TYPE = 0x6;
const BAR_TYPE_64 = 0x4;
/** Any address works, because regions are accessed by index. This one is in the usual PCI hole of PCs. */
const FIRST_ADDRESS = 0xe000_0000;

/** Gives every memory region of the function an address, and enables memory decoding and bus mastering. */
export function enableFunction(client: VfioUserClient): void {
  const config = new Config(client);
  let next = FIRST_ADDRESS;
  for (let bar = PCI_REGION.BAR0; bar <= PCI_REGION.BAR5; bar++) {
    const size = client.regions.at(bar)?.size ?? 0;
    const flags = config.read32(BAR0 + bar * 4);
    if (size === 0 || (flags & BAR_IO) !== 0) continue;
    const address = alignUp(next, size);
    config.write32(BAR0 + bar * 4, address);
    if ((flags & BAR_TYPE) === BAR_TYPE_64) config.write32(BAR0 + ++bar * 4, Math.floor(address / 2 ** 32));
    next = address + size;
  }
  config.write32(COMMAND, (config.read32(COMMAND) & 0xffff) | COMMAND_MEMORY_AND_MASTER);
}

/** Accesses configuration space in 32-bit units. */
class Config {
  readonly #word = new Uint32Array(1);
  readonly #bytes = new Uint8Array(this.#word.buffer);

  constructor(private readonly client: VfioUserClient) {}

  read32(offset: number): number {
    this.client.regionRead(PCI_REGION.CONFIG, offset, this.#bytes);
    return this.#word[0];
  }

  write32(offset: number, value: number): void {
    this.#word[0] = value;
    this.client.regionWrite(PCI_REGION.CONFIG, offset, this.#bytes);
  }
}
