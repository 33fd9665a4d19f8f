/** One range mapped on many devices: on all of them or on none. */
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
import { STAYS } from '../stays.js';

/** Options of a group that is mapped for every device, present and future. */
export interface Standing {
  /** The call that unmaps the group, for messages: the program can not unmap its mappings one by one. */
  readonly keeper: string;
  /** Called when the group is unmapped, before the range is unmapped from the devices. */
  readonly ends: () => void;
}

/** One range, mapped on several devices. Disposing it unmaps it from all of them. */
export class GroupMapping implements Disposable, AsyncDisposable {
  /** @internal */
  readonly stays = STAYS;
  /** The requested range, as it was at the time of the call. */
  readonly target: MemoryPart;
  /** The requested options, as they were at the time of the call. */
  readonly options: MapOptions | undefined;
  readonly #byDevice = new Map<string, Mapping>();
  readonly #standing: Standing | undefined;
  readonly #origin: Origin | undefined;

  /**
   * @internal
   *
   * @param origin the place in the program that asked for it; its mappings show this instead of a place in the library
   */
  constructor({ va, length }: MemoryPart, options: MapOptions | undefined, standing?: Standing, origin?: Origin) {
    // The caller may change its objects later, so copy the values.
    this.target = Object.freeze({ va, length });
    this.options = options === undefined ? undefined : Object.freeze({ ...options });
    this.#standing = standing;
    this.#origin = origin;
  }

  /** The mapping of one device; `undefined` if the device is not, or no longer, in the group. */
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
   * @throws the first error, after all devices were tried; call it again to retry what is still mapped
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

  /** @internal Notes a mapping of a device that another process made. */
  takeOver(device: Device, mapping: Mapping): void {
    this.#add(device, mapping);
  }

  /** @internal Another process has its mappings: forgets it. */
  abandon(): void {
    this.#standing?.ends();
    this.#byDevice.clear();
  }

  /** @internal As {@link GroupMapping.add}, without blocking the event loop. */
  async addAsync(device: Device, work: MapAsyncOptions = {}): Promise<void> {
    this.#add(device, await device.dmaMapAsync(this.target, { ...this.options, ...work }));
  }

  #add(device: Device, mapping: Mapping): void {
    mapping.keeper = this.#standing?.keeper;
    if (this.#origin !== undefined) mapping.origin = this.#origin;
    this.#byDevice.set(device.name, mapping);
  }

  /** As {@link GroupMapping.unmap}, without blocking the event loop. Waits for unmaps that are already in progress. */
  async unmapAsync(): Promise<void> {
    this.#standing?.ends();
    throwFirst(await this.dropAsync(this.#byDevice.keys()), 'unmap');
  }

  /** As {@link GroupMapping.unmapAsync}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.unmapAsync();
  }

  /** @internal As {@link GroupMapping.drop}, without blocking the event loop. */
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

  /** @internal Unmaps it from the devices with these names, in reverse order. @returns the errors */
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
 * Maps `group`'s range on each of `devices` that it is not mapped on yet. If one fails, the mappings made here are
 * undone in reverse order.
 *
 * @throws DmaError of the device that failed; errors while undoing are in `undo`
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
