/** One range on many devices: all or nothing. */
import { undoAll, withUndo } from '../errors.js';
import type { Mapping } from '../dma/mapping.js';
import type { MapOptions, MapTarget } from '../dma/plan.js';
import type { Device } from './model.js';

/** One range, mapped on several devices. Disposing it unmaps it from all of them. */
export class GroupMapping implements Disposable {
  readonly target: MapTarget;
  readonly options: MapOptions | undefined;
  readonly #byDevice = new Map<string, Mapping>();
  readonly #closed: (() => void) | undefined;

  /** @internal */
  constructor(target: MapTarget, options: MapOptions | undefined, closed?: () => void) {
    this.target = target;
    this.options = options;
    this.#closed = closed;
  }

  /** The mapping of one device; `undefined` when that is not, or no longer, in the group. */
  of(device: Device): Mapping | undefined {
    return this.mappings.find((mapping) => mapping.device === device.name);
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
    this.#closed?.();
    const errors = this.drop(this.#byDevice.keys());
    if (errors.length > 0) throw withUndo(errors[0], 'unmap', errors.slice(1));
  }

  [Symbol.dispose](): void {
    this.unmap();
  }

  /** @internal */
  add(device: Device): void {
    this.#byDevice.set(device.name, device.dmaMap(this.target, this.options));
  }

  /** @internal Unmaps it from the devices of these names, in reverse order. @returns what failed */
  drop(names: Iterable<string>): unknown[] {
    return undoAll(
      [...names].reverse().map((name) => () => {
        this.#byDevice.get(name)?.[Symbol.dispose]();
        this.#byDevice.delete(name);
      }),
    );
  }
}

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
    throw withUndo(error, 'dmaMapAll', group.drop(added));
  }
  return group;
}
