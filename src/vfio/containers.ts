/**
 * Containers: the user's names for address spaces of the kernel. Devices in one container share its mappings. The kind
 * of address space is chosen with the first device, and again after the last was removed.
 */
import { type Gate, open, optionsOf, type Shape } from '../check.js';
import { DmaError, invalid, isDmaError, naming, throwFirst, undoAll, withUndo } from '../errors.js';
import { nonsense, type Fields, type JsonObject } from '../fields.js';
import type { Platform } from '../platform/ports.js';
import { Range } from '../ranges.js';
import type { Iova } from '../units.js';
import { Container, type ContainerParts } from './container.js';
import type { VfioDevice } from './device.js';
import { groupMembers, isNoIommuGroup } from './facts.js';
import { IommufdContext, IOMMUFD } from './iommufd-context.js';
import { IommufdSpace } from './iommufd.js';
import { NoIommuSpace } from './noiommu.js';
import { SpaprSpace } from './spapr.js';
import type { ContainerChoice, ContainerKind, KernelSpace, VfioNode } from './space.js';
import { Type1Space } from './type1.js';
import { shortForm } from '../short-form.js';
import { STAYS } from '../stays.js';

export { Container } from './container.js';
export type { ContainerChoice, ContainerKind, KernelSpace, VfioNode } from './space.js';

/** Options of a new container. */
export interface ContainerOptions {
  /** Default: `container-1` and on. */
  readonly name?: string;
  /** Default: the choice of {@link Containers}. */
  readonly kind?: ContainerChoice;
  /** For iommufd: may devices with PCI PRI request missing pages? See {@link Container.pageRequests}. Default false. */
  readonly pageRequests?: boolean;
}

/** All values of {@link ContainerChoice}. */
export const CONTAINER_CHOICES: readonly ContainerChoice[] = ['auto', 'iommufd', 'type1', 'spapr', 'noiommu'];

const CONTAINER_OPTIONS: Shape<ContainerOptions> = { name: 'string', kind: CONTAINER_CHOICES, pageRequests: 'boolean' };

/** A device opened in a container. */
export interface OpenedNode {
  readonly device: VfioDevice;
  /** The address space of the device. */
  readonly space: KernelSpace;
  /** Closes the device and removes it from the container. Idempotent. */
  release(): void;
}

/** Name of the default container. */
const DEFAULT = 'default';

/** All containers of one program. All devices of one IOMMU group must be in one container; this is checked here. */
export class Containers {
  /** @internal */
  readonly stays = STAYS;
  /** The container of devices for which no other was requested. */
  readonly default: Container;
  readonly #platform: Platform;
  readonly #choice: ContainerChoice;
  readonly #containers = new Map<string, Container>();
  /** Containers by number of the IOMMU groups with open devices. */
  readonly #groups = new Map<number, Container>();
  readonly #iommufd: IommufdContext<IommufdSpace>;
  readonly #domainOf: ContainerParts['domainOf'];
  /** Results of {@link open} that were not released. */
  readonly #opened = new Set<OpenedNode>();
  #made = 0;
  #gate: Gate = open;

  /** @internal @param options.gate called before a container is created @param options.domainOf see {@link ContainerParts} */
  constructor(
    platform: Platform,
    options: {
      readonly choice?: ContainerChoice;
      readonly gate?: Gate;
      readonly domainOf?: ContainerParts['domainOf'];
    } = {},
  ) {
    this.#platform = platform;
    this.#domainOf = options.domainOf ?? ((): undefined => undefined);
    this.#choice = options.choice ?? 'auto';
    this.#iommufd = new IommufdContext(platform);
    this.default = this.create({ name: DEFAULT });
    this.#gate = options.gate ?? open;
  }

  /** Creates a container. Opens nothing before its first device. @throws DmaError EEXIST if the name is taken */
  create(options?: ContainerOptions): Container {
    this.#gate('containers.create');
    const checked = optionsOf(options, CONTAINER_OPTIONS, 'containers.create');
    const { name = this.#freeName(), kind = this.#choice, pageRequests = false } = checked;
    if (name === '') throw invalid('container', 'a container needs a name');
    if (this.#containers.has(name))
      throw new DmaError({ code: 'EEXIST', operation: 'container', reason: `there is a container "${name}" already` });
    const container = new Container({
      name,
      choice: kind,
      takesPageRequests: pageRequests,
      domainOf: this.#domainOf,
      forget: (closed) => {
        if (this.#containers.get(name) === closed) this.#containers.delete(name);
      },
    });
    this.#containers.set(name, container);
    return container;
  }

  /** The container with that name; `undefined` if there is none. */
  find(name: string): Container | undefined {
    return this.#containers.get(name);
  }

  /** All open containers, in order of creation. */
  [Symbol.iterator](): IterableIterator<Container> {
    return this.#containers.values();
  }

  /**
   * @internal Opens a device in a container.
   *
   * @throws DmaError EBUSY if its IOMMU group is in another container, in use elsewhere, or not viable; EEXIST if it is
   * open already; ENODEV if it is not bound to VFIO; ENOTSUP if the kernel does not support this kind of container;
   * EACCES; EPERM; EINVAL if the container is closed, or belongs to other Containers. On an error nothing is left open
   */
  open(container: Container, node: VfioNode): OpenedNode {
    this.#mustTake(container, node);
    const isFirst = container.space === undefined;
    const { space, device } = naming(node.name, () => {
      const space = container.space ?? this.#makeSpace(container, node);
      try {
        return { space, device: space.open(node) };
      } catch (error) {
        throw withUndo(error, 'open', isFirst ? undoAll([() => space.end()]) : []);
      }
    });
    return this.#keep(container, node, space, device);
  }

  #keep(container: Container, node: VfioNode, space: KernelSpace, device: VfioDevice): OpenedNode {
    container.space = space;
    container.nodes.set(node.name, node);
    if (node.group !== undefined) this.#groups.set(node.group, container);
    const opened: OpenedNode = {
      device,
      space,
      release: () => {
        if (this.#opened.delete(opened)) this.#release(container, node, opened);
      },
    };
    this.#opened.add(opened);
    return opened;
  }

  /**
   * @internal What another process needs to continue with the containers and their address spaces; their devices are handed
   *   over one by one.
   *
   * @returns `fds`: iommufd, if it is open
   * @throws DmaError ENOTSUP for what can not be handed over: the error names it. Nothing changes
   */
  handOver(): { readonly state: JsonObject; readonly fds: readonly number[] } {
    const containers = [...this.#containers.values()].map((container) => {
      const { name, choice, takesPageRequests, allowed, space } = container;
      if (space !== undefined && !(space instanceof IommufdSpace)) throw notHanded(container, space.kind);
      return {
        ...{ name, choice, takesPageRequests, space: space?.handOver() ?? null },
        allowed: allowed.map(({ start, length }) => ({ start, length })),
      };
    });
    return { state: { containers, made: this.#made }, fds: this.#iommufd.spaces.size > 0 ? [this.#iommufd.fd] : [] };
  }

  /**
   * @internal Continues with containers that another process has handed over. Only in a new object.
   *
   * @param fds belong to this object from now on, also if it throws
   */
  takeOver(state: Fields, fds: readonly number[]): void {
    const [fd] = fds;
    if (fd !== undefined) this.#iommufd.takeOver(fd);
    for (const each of state.list('containers')) {
      const name = each.string('name');
      const choice = each.word('choice', CONTAINER_CHOICES);
      const pageRequests = each.boolean('takesPageRequests');
      const container = this.#containers.get(name) ?? this.create({ name, kind: choice, pageRequests });
      container.allowed = each
        .list('allowed')
        .map((range) => new Range(range.number('start') as Iova, range.number('length')));
      if (each.has('space'))
        container.space = new IommufdSpace(
          this.#platform,
          this.#iommufd,
          { name, pageRequests },
          each.objectAt('space'),
        );
    }
    this.#made = state.number('made');
  }

  /** @internal As {@link open}, for a device that another process has handed over. @param fd belongs to the device, also if it throws */
  takeOverDevice(container: Container, node: VfioNode, fd: number): OpenedNode {
    const { space } = container;
    if (!(space instanceof IommufdSpace)) {
      this.#platform.files.close(fd);
      throw nonsense('takeOver', `${node.name} is in a container without an address space`);
    }
    return this.#keep(container, node, space, space.takeOverDevice(node, fd));
  }

  /**
   * @internal The pinned pages of all mappings count for this process from now on: see
   *   {@link IommufdContext.changeProcess}. Does nothing while iommufd is not open.
   */
  changeProcess(): void {
    if (this.#iommufd.spaces.size > 0) this.#iommufd.changeProcess();
  }

  /** @internal Another process has everything: closes this process's descriptor of iommufd. The devices were closed before. */
  abandon(): void {
    for (const container of this.#containers.values()) {
      if (container.space instanceof IommufdSpace) container.space.abandon();
      container.space = undefined;
      container.nodes.clear();
    }
    this.#groups.clear();
    this.#opened.clear();
    this.#iommufd.abandon();
  }

  /** @internal Releases all devices and closes all containers. @returns what failed */
  close(): unknown[] {
    return undoAll([
      ...[...this.#opened].reverse().map((opened) => () => opened.release()),
      ...[...this.#containers.values()].map((container) => () => container.close()),
    ]);
  }

  #release(container: Container, node: VfioNode, { device, space }: OpenedNode): void {
    container.nodes.delete(node.name);
    const { group } = node;
    if (group !== undefined && ![...container.nodes.values()].some((other) => other.group === group))
      this.#groups.delete(group);
    const isLast = container.nodes.size === 0;
    if (isLast) container.space = undefined;
    throwFirst(
      undoAll([() => device.close(), () => space.release(node), ...(isLast ? [() => space.end()] : [])]),
      'close',
    );
  }

  #mustTake(container: Container, { name, group }: VfioNode): void {
    const refuse = (code: 'EINVAL' | 'EEXIST' | 'EBUSY', reason: string, hint?: string): DmaError =>
      new DmaError({ code, operation: 'open', device: name, reason, hint });
    if (container.closed) throw refuse('EINVAL', `container "${container.name}" is closed`);
    if (this.#containers.get(container.name) !== container)
      throw refuse('EINVAL', `container "${container.name}" is of another Eal`);
    for (const each of this.#containers.values())
      if (each.nodes.has(name)) throw refuse('EEXIST', `it is open already, in container "${each.name}"`);
    const owner = group === undefined ? undefined : this.#groups.get(group);
    if (group === undefined || owner === undefined || owner === container) return;
    const there = [...owner.nodes.values()].filter((node) => node.group === group).map((node) => node.name);
    throw refuse(
      'EBUSY',
      `its IOMMU group ${group} is in container "${owner.name}", with ${there.join(', ')}`,
      `devices of one group can access the same memory: open it in that container too. The group has ${groupMembers(
        this.#platform.kernel,
        group,
      )
        .map((member) => member.name)
        .join(', ')}`,
    );
  }

  #makeSpace(container: Container, node: VfioNode): KernelSpace {
    const platform = this.#platform;
    const { choice, name } = container;
    switch (choice) {
      case 'iommufd':
        return this.#makeIommufd(container);
      case 'type1':
        return new Type1Space(platform, name);
      case 'spapr':
        return new SpaprSpace(platform, { name });
      case 'noiommu':
        return new NoIommuSpace(platform, name);
      case 'auto':
        this.#mustHaveIommu(node);
        if (container.allowed.length > 0) return this.#makeIommufd(container);
        return this.#prefersIommufd(node) ? this.#makeIommufd(container) : this.#makeGroupSpace(name);
    }
    throw invalid('container', `there is no kind of container "${String(choice)}"`);
  }

  #makeIommufd({ name, takesPageRequests, allowed }: Container): IommufdSpace {
    const space = new IommufdSpace(this.#platform, this.#iommufd, { name, pageRequests: takesPageRequests });
    if (allowed.length === 0) return space;
    try {
      space.allowIovas(allowed);
      return space;
    } catch (error) {
      throw withUndo(error, 'open', undoAll([() => space.end()]));
    }
  }

  /**
   * Does the device have both, and may this user open the character device? Permissions are more often set for groups,
   * which are older.
   */
  #prefersIommufd({ device, group }: VfioNode): boolean {
    const { kernel } = this.#platform;
    if (device === undefined) return false;
    const nodes = [kernel.mayOpen(IOMMUFD), kernel.mayOpen(device)];
    if (nodes.includes('no-such-file')) return false;
    return !nodes.includes('no-permission') || group === undefined || kernel.mayOpen(`/dev/vfio/${group}`) !== 'yes';
  }

  #makeGroupSpace(name: string): KernelSpace {
    try {
      return new Type1Space(this.#platform, name);
    } catch (error) {
      if (!isDmaError(error, 'ENOTSUP')) throw error;
      try {
        return new SpaprSpace(this.#platform, { name });
      } catch (second) {
        throw isDmaError(second, 'ENOTSUP') ? error : second;
      }
    }
  }

  #mustHaveIommu({ name, group }: VfioNode): void {
    if (group === undefined || !isNoIommuGroup(this.#platform.kernel, group)) return;
    throw new DmaError({
      code: 'ENODEV',
      operation: 'open',
      device: name,
      reason: 'no IOMMU translates for it: it could access all memory of this machine',
      hint: 'switch the IOMMU on; or, if that is acceptable, request a container of kind "noiommu"',
    });
  }

  #freeName(): string {
    for (;;) {
      const name = `container-${++this.#made}`;
      if (!this.#containers.has(name)) return name;
    }
  }
}

shortForm(Containers, 'Containers', (containers) => ({ names: [...containers].map(({ name }) => name) }));

/** Why a container can not be handed over. */
function notHanded({ name }: Container, kind: ContainerKind): DmaError {
  const why =
    kind === 'vfio-type1'
      ? 'VFIO type 1 counts pinned pages for the process that mapped them, and maps by its addresses'
      : `the kernel has no way to hand over an address space of kind ${kind}`;
  return new DmaError({
    code: 'ENOTSUP',
    operation: 'handOver',
    reason: `container "${name}": ${why}`,
    hint: "start with iommu: 'iommufd' (Linux 6.14 or later), whose mappings can change their process",
  });
}
