/**
 * A container: the user's name for an address space of the IOMMU. Its kind is decided by its first device, and can differ after its
 * last device has left.
 */
import { isA, mustBe, optionsOf, reading, type Shape } from '../check.js';
import type { Domain } from '../dma/domain.js';
import type { Mapping } from '../dma/mapping.js';
import type { MapOptions } from '../dma/plan.js';
import { DmaError, invalid } from '../errors.js';
import { Range } from '../ranges.js';
import { shortForm } from '../short-form.js';
import type { Iova, IovaLike } from '../units.js';
import type { DirtyPages, DirtyTracking } from './dirty.js';
import type { PageRequestQueue } from './page-requests.js';
import type { ContainerChoice, ContainerKind, KernelSpace, VfioNode } from './space.js';
import type { MemoryPart } from '../memory/part.js';
import { STAYS } from '../stays.js';

/** What a container is made with. */
export interface ContainerParts {
  readonly name: string;
  readonly choice: ContainerChoice;
  readonly takesPageRequests: boolean;
  /** The domain of what is mapped in an address space, while there is one. */
  readonly domainOf: (space: KernelSpace) => Domain | undefined;
  readonly forget: (container: Container) => void;
}

const READ_OPTIONS: Shape<{ readonly keep?: boolean }> = { keep: 'boolean' };

/** A named address space of the IOMMU. Made by `eal.containers.create`. */
export class Container {
  /** @internal */
  readonly stays = STAYS;
  readonly name: string;
  /** The requested kind. */
  readonly choice: ContainerChoice;
  /** Tracks which pages devices write. */
  readonly dirty: DirtyTracking;
  /** @internal */
  readonly takesPageRequests: boolean;
  /** @internal */
  space: KernelSpace | undefined;
  /** @internal by name */
  readonly nodes = new Map<string, VfioNode>();
  /** @internal IOVAs that every device in it has to reach, see {@link allowIovas} */
  allowed: readonly Range<Iova>[] = [];
  /** @internal */
  closed = false;
  readonly #parts: ContainerParts;
  #hasWarned = false;

  /** @internal */
  constructor(parts: ContainerParts) {
    this.#parts = parts;
    this.name = parts.name;
    this.choice = parts.choice;
    this.takesPageRequests = parts.takesPageRequests;
    this.dirty = new ContainerDirtyTracking(this);
  }

  /** Its kind; `undefined` while it has no device. */
  get kind(): ContainerKind | undefined {
    return this.space?.kind;
  }

  /** Names of the devices in it. */
  get devices(): readonly string[] {
    return [...this.nodes.keys()];
  }

  /** The domain of its devices; `undefined` while it has no device. */
  get domain(): Domain | undefined {
    return this.space === undefined ? undefined : this.#parts.domainOf(this.space);
  }

  /**
   * Reserves IOVAs for later mappings: a device that can not reach all of them is refused, so the windows always include them
   * (IOMMU_IOAS_ALLOW_IOVAS). The ranges replace earlier ones; an empty list removes them. They can be set before the first device,
   * and are kept after the last one.
   *
   * @throws DmaError EINVAL: not ranges, or they overlap; ENOTSUP: this is not a container of iommufd; EADDRINUSE: one of the
   *   devices in it can not reach some of them. Then what was allowed before still is
   */
  allowIovas(ranges: readonly Range<Iova>[]): void {
    const operation = 'allowIovas';
    const wanted = reading(operation, 'the ranges', () => [...ranges]);
    for (const range of wanted) mustBe(range, Range, 'what is allowed', operation);
    const sorted = wanted.sort((a, b) => a.start - b.start);
    for (const [i, range] of sorted.entries())
      if (i > 0 && range.start < sorted[i - 1].end) throw invalid(operation, 'the ranges overlap', { range });
    if (this.space === undefined ? this.choice !== 'iommufd' && this.choice !== 'auto' : this.space.kind !== 'iommufd')
      throw this.unsupported(operation, 'promises IOVAs');
    this.space?.allowIovas?.(sorted);
    this.allowed = sorted;
  }

  /**
   * The page requests of its devices. A device with PCI PRI waits for a missing page until the request is answered.
   *
   * @throws DmaError EINVAL: the container was not made with `pageRequests`; ENODEV: no device is in it; ENOTSUP: its kind has no
   *   page requests
   */
  get pageRequests(): PageRequestQueue {
    const operation = 'pageRequests';
    if (!this.takesPageRequests)
      throw invalid(operation, `container "${this.name}" was not made for page requests`, {
        hint: 'eal.containers.create({ pageRequests: true }) makes one',
      });
    const { pageRequests } = this.mustHaveSpace(operation);
    if (pageRequests !== undefined) return pageRequests;
    throw this.unsupported(operation, 'hands page requests to programs');
  }

  /**
   * Maps for the container itself and not for one of its devices, until {@link Container.unmap} or until its last device leaves.
   * This is how VFIO containers are used; it is here for programs that are being ported.
   *
   * @deprecated `device.dmaMap` does the same for every kind of device, and knows whose mapping it is
   * @throws DmaError ENODEV: no device is in it; else as `Device.dmaMap`
   */
  map(target: MemoryPart, options?: MapOptions): Mapping {
    this.#warnOldWay();
    return this.#mustHaveDomain('container.map').mapOwn(target, options, 'container.map');
  }

  /**
   * Undoes {@link Container.map}.
   *
   * @deprecated with {@link Container.map}
   * @throws DmaError ENODEV: no device is in it; else as `Device.dmaUnmap`
   */
  unmap(target: Mapping | (MemoryPart & { readonly iova?: IovaLike })): void {
    this.#warnOldWay();
    this.#mustHaveDomain('container.unmap').unmapOwn(target, 'container.unmap');
  }

  /** Closes it: no device can be added any more. Idempotent. @throws DmaError EBUSY while it has devices */
  close(): void {
    if (this.nodes.size > 0)
      throw new DmaError({
        code: 'EBUSY',
        operation: 'close',
        reason: `container "${this.name}" has devices: ${this.devices.join(', ')}`,
      });
    this.closed = true;
    this.#parts.forget(this);
  }

  /** Calls {@link close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** @internal What it is of the kernel's. @throws DmaError ENODEV while no device is in it */
  mustHaveSpace(operation: string): KernelSpace {
    if (this.space !== undefined) return this.space;
    throw new DmaError({
      code: 'ENODEV',
      operation,
      reason: `no device is in the container "${this.name}"`,
      hint: 'eal.probe(name, { container }) puts one into it; what the kernel has of it begins with the first',
    });
  }

  /** @internal The error of a call that its kind can not do. @param does what it does not do: a clause */
  unsupported(operation: string, does: string): DmaError {
    const reason = `container "${this.name}" is of kind ${this.kind ?? this.choice}; only iommufd ${does}`;
    const hint = 'eal.containers.create({ kind: "iommufd" }) makes one (Linux 6.6 and later)';
    return new DmaError({ code: 'ENOTSUP', operation, reason, hint });
  }

  #mustHaveDomain(operation: string): Domain {
    const domain = this.#parts.domainOf(this.mustHaveSpace(operation));
    if (domain !== undefined) return domain;
    throw new DmaError({ code: 'ENODEV', operation, reason: `no device of the container "${this.name}" is probed` });
  }

  #warnOldWay(): void {
    if (this.#hasWarned) return;
    this.#hasWarned = true;
    const warning = 'container.map and container.unmap are the old way: map for a device, with device.dmaMap';
    process.emitWarning(warning, { type: 'DeprecationWarning', code: 'ANYDMA_CONTAINER_MAP' });
  }
}

shortForm(Container, 'Container', ({ name, kind, devices }) => ({ name, kind, devices }));

/** Tracks dirty pages in the address space that the container has at the time of the call. */
class ContainerDirtyTracking implements DirtyTracking {
  readonly #container: Container;

  constructor(container: Container) {
    this.#container = container;
  }

  get pageSize(): number {
    return this.#tracking('pageSize').pageSize;
  }

  start(): void {
    this.#tracking('start').start();
  }

  stop(): void {
    this.#tracking('stop').stop();
  }

  read(range: Range<Iova>, options?: { readonly keep?: boolean }): DirtyPages {
    const operation = 'dirty pages';
    const checked = optionsOf(options, READ_OPTIONS, operation);
    if (!isA(range, Range)) mustBe(range, Range, 'what is asked about', operation);
    return this.#tracking('read').read(range, checked);
  }

  #tracking(call: string): DirtyTracking {
    const operation = `dirty.${call}`;
    const { dirty } = this.#container.mustHaveSpace(operation);
    if (dirty !== undefined) return dirty;
    const reason = `container "${this.#container.name}" is of kind ${this.#container.kind}, which tracks no dirty pages`;
    throw new DmaError({ code: 'ENOTSUP', operation, reason, hint: 'iommufd and type1 can, where the IOMMU does' });
  }
}
