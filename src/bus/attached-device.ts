/** A device of another thread, as `attach` gives it: the addresses that it uses for memory. */
import { mustBeObject } from '../check.js';
import { DmaError, invalid } from '../errors.js';
import { AttachedTable } from '../dma/attached-table.js';
import type { MemoryPart } from '../memory/part.js';
import type { HoldOf } from '../memory/shared/hold.js';
import type { SharedFacts } from '../memory/shared/shared.js';
import type { WordMemory } from '../memory/shared/words.js';
import { Range } from '../ranges.js';
import { shortForm } from '../short-form.js';
import { isAddress, type Iova, type Va, type VaLike } from '../units.js';
import { STAYS } from '../stays.js';

/** What a description says of a device. */
export interface DeviceFacts {
  readonly name: string;
  /** The name of its driver. */
  readonly driver?: string;
  /** The name and kind of its domain; absent if memory can not be mapped for it. */
  readonly domain?: { readonly name: string; readonly kind: string };
}

/** The domain of a device of another thread. */
export interface AttachedDomain {
  readonly name: string;
  /** As `Domain.kind`. */
  readonly kind: string;
  /** From VA to IOVA and key, for hot paths: it follows the maps and unmaps of the thread that has the device. */
  readonly table: AttachedTable;
}

/**
 * A device that another thread has probed and shares. Made by `attach`. It tells which addresses the device uses, for queues and rings in this
 * thread; `pool.iovasFor` takes it. Mapping and unmapping stay with the thread that has the device. While it is attached, the device is not
 * removed (EBUSY). Disposing it lets go of it.
 */
export class AttachedDevice implements Disposable {
  /** @internal */
  readonly stays = STAYS;
  /** `bus:name` */
  readonly name: string;
  /** The name of its driver. */
  readonly driver: string | undefined;
  /** Where its memory is mapped; `undefined` if memory can not be mapped for it. */
  readonly domain: AttachedDomain | undefined;
  readonly #hold: HoldOf;

  /**
   * @internal made by `attach`
   *
   * @param table the changes and the pieces of its domain's table
   */
  constructor(facts: DeviceFacts, hold: HoldOf, table: readonly WordMemory[]) {
    this.name = facts.name;
    this.driver = facts.driver;
    const [changes, pieces] = table;
    this.domain =
      facts.domain === undefined || changes === undefined || pieces === undefined
        ? undefined
        : { ...facts.domain, table: new AttachedTable(changes, pieces) };
    this.#hold = hold;
  }

  /** Is it there, and attached? False once it was lost, or the thread that has it ended. */
  get live(): boolean {
    return this.#hold.live;
  }

  /**
   * The IOVA that the device uses for memory, which is mapped for it in one piece: as `Device.iovaOf`.
   *
   * @throws DmaError EINVAL if the memory is not mapped, or not in one piece, or this thread has let go of the device; ENODEV once it is
   *   lost; ENOTSUP if memory can not be mapped for it
   */
  iovaOf(memory: MemoryPart | VaLike): Iova {
    const operation = 'iovaOf';
    this.#hold.mustBeThere(operation, `the device ${this.name}`);
    const { domain, name: device } = this;
    if (domain === undefined)
      throw new DmaError({ code: 'ENOTSUP', operation, device, reason: 'memory can not be mapped for this device' });
    if (typeof memory !== 'number') mustBeObject(memory, 'memory and VAs', operation);
    const { va, length, live = true } = typeof memory === 'number' ? { va: memory, length: 1 } : memory;
    if (live && isAddress(va) && isAddress(length) && length > 0) {
      const iova = domain.table.iovaOfRange(va, length);
      if (iova >= 0) return iova as Iova;
    }
    const range = new Range<Va>(va as Va, length, operation);
    if (!live) throw invalid(operation, 'the memory was freed, or this thread has let go of it', { range, device });
    const isMapped = domain.table.iovaOf(range.start) >= 0;
    throw invalid(operation, `the memory is not mapped ${isMapped ? 'in one piece ' : ''}for the device`, {
      range,
      device,
      hint: 'the thread that has the device maps it: device.dmaMap(memory)',
    });
  }

  /** Lets go of it, so that it can be removed. Idempotent. */
  [Symbol.dispose](): void {
    this.#hold.leave();
  }
}

shortForm(AttachedDevice, 'AttachedDevice', ({ name, driver, domain, live }) => ({
  name,
  driver,
  domain: domain?.name,
  live,
}));

/** Reads what a description says of a device. It is sealed, so only its form can be wrong. @throws DmaError EINVAL */
export function deviceFacts(facts: SharedFacts, operation: string): DeviceFacts {
  const { name } = facts;
  if (typeof name !== 'string') throw invalid(operation, 'the description says nothing of a device');
  return facts as SharedFacts & DeviceFacts;
}
