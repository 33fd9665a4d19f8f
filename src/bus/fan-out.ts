/** One range on many devices: all or nothing. */
import { reading } from '../check.js';
import { throwFirst, toldAs, undoAll, withUndo } from '../errors.js';
import type { MapAsyncOptions } from '../dma/domain.js';
import type { Mapping } from '../dma/mapping.js';
import type { MapOptions } from '../dma/plan.js';
import type { Origin } from '../origin.js';
import type { Device } from './model.js';
import { shortForm } from '../short-form.js';
import { hex } from '../units.js';
import type { MemoryPart } from '../memory/part.js';

/** What a group that is mapped for every device, now and later, is made with. */
export interface Standing {
  /** What ends it, for messages: its mappings are not for the program to unmap one by one. */
  readonly keeper: string;
  /** Called when it is unmapped, before it is taken from the devices. */
  readonly ends: () => void;
}

/** One range, mapped on several devices. Disposing it unmaps it from all of them. */
export class GroupMapping implements Disposable, AsyncDisposable {
  /** What was asked for, as it was then. */
  readonly target: MemoryPart;
  /** As {@link GroupMapping.target}. */
  readonly options: MapOptions | undefined;
  readonly #byDevice = new Map<string, Mapping>();
  readonly #standing: Standing | undefined;
  readonly #origin: Origin | undefined;

  /** @internal @param origin where the program asked for it, which its mappings say instead of places in this library */
  constructor({ va, length }: MemoryPart, options: MapOptions | undefined, standing?: Standing, origin?: Origin) {
    // Of objects of the caller, which he may change, the values are kept.
    this.target = Object.freeze({ va, length });
    this.options = options === undefined ? undefined : Object.freeze({ ...options });
    this.#standing = standing;
    this.#origin = origin;
  }

  /** The mapping of one device; `undefined` when that is not, or no longer, in the group. */
  of(device: Device): Mapping | undefined {
    if (typeof device !== 'object' || device === null) return undefined;
    const name = reading('of', 'the device', () => device.name);
    const mapping = this.#byDevice.get(name);
    return mapping?.live === true ? mapping : undefined;
  }

  /** All mappings, in the order they were made. */
  get mappings(): readonly Mapping[] {
    return [...this.#byDevice.values()].filter((mapping) => mapping.live);
  }

  /**
   * Unmaps it from every device, in reverse order.
   *
   * @throws the first error, once all were tried; what is still mapped then can be tried again
   */
  unmap(): void {
    this.#standing?.ends();
    throwFirst(this.drop(this.#byDevice.keys()), 'unmap');
  }

  /** Calls {@link unmap}. */
  [Symbol.dispose](): void {
    this.unmap();
  }

  /** @internal */
  add(device: Device): void {
    this.#add(device, device.dmaMap(this.target, this.options));
  }

  /** @internal As {@link GroupMapping.add}, while the event loop goes on. */
  async addAsync(device: Device, work: MapAsyncOptions = {}): Promise<void> {
    this.#add(device, await device.dmaMapAsync(this.target, { ...this.options, ...work }));
  }

  #add(device: Device, mapping: Mapping): void {
    mapping.keeper = this.#standing?.keeper;
    if (this.#origin !== undefined) mapping.origin = this.#origin;
    this.#byDevice.set(device.name, mapping);
  }

  /** As {@link GroupMapping.unmap}, while the event loop goes on. What is being unmapped already is waited for. */
  async unmapAsync(): Promise<void> {
    this.#standing?.ends();
    throwFirst(await this.dropAsync(this.#byDevice.keys()), 'unmap');
  }

  /** As {@link GroupMapping.unmapAsync}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.unmapAsync();
  }

  /** @internal As {@link GroupMapping.drop}, while the event loop goes on. */
  async dropAsync(names: Iterable<string>): Promise<unknown[]> {
    const errors: unknown[] = [];
    for (const name of [...names].reverse()) {
      const mapping = this.#byDevice.get(name);
      try {
        if (mapping?.live === true) await mapping.endAsync();
        if (this.#byDevice.get(name) === mapping) this.#byDevice.delete(name);
      } catch (error) {
        errors.push(error);
      }
    }
    return errors;
  }

  /** @internal Unmaps it from the devices of these names, in reverse order. @returns what failed */
  drop(names: Iterable<string>): unknown[] {
    return undoAll(
      [...names].reverse().map((name) => () => {
        const mapping = this.#byDevice.get(name);
        if (mapping?.live === true) mapping.end();
        this.#byDevice.delete(name);
      }),
    );
  }
}

shortForm(GroupMapping, 'GroupMapping', ({ target: { va, length }, mappings }) => ({
  va: hex(va),
  length,
  devices: mappings.map(({ device }) => device),
}));

/**
 * Maps `group`'s range on each of `devices` that it is not on yet. When one fails, those of them before it are unmapped
 * again, in reverse.
 *
 * @throws DmaError of the device that failed, with what could not be undone in `undo`
 */
export function mapOnAll(group: GroupMapping, devices: Iterable<Device>): GroupMapping {
  const added: string[] = [];
  try {
    for (const device of devices) {
      if (group.of(device) !== undefined) continue;
      group.add(device);
      added.push(device.name);
    }
  } catch (error) {
    throw withUndo(toldAs('dmaMapAll', ['dmaMap'], error), 'dmaMapAll', group.drop(added));
  }
  return group;
}
