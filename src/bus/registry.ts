/**
 * Buses, drivers and devices of one `Eal`: registering, scanning, probing, removing, listing, and mapping memory for
 * every device, present and future.
 */
import {
  Domain,
  type BookSettings,
  type DomainOptions,
  type HandedMapping,
  type MapAsyncOptions,
} from '../dma/domain.js';
import type { AddressSpace } from '../dma/address-space.js';
import { ACCESSES, checkTarget, MAP_OPTIONS, targetOf, type MapOptions } from '../dma/plan.js';
import { mustBe, mustBeFunction, mustBeString, mustHandle, optionsOf, reading, stopped } from '../check.js';
import { debug } from '../debug.js';
import { DmaError, invalid, isDmaError, throwFirst, toldAs, undoAll, withUndo } from '../errors.js';
import type { Fields, JsonObject } from '../fields.js';
import type { Paused } from '../handed.js';
import { progressOf, type LongWorkOptions } from '../long-work.js';
import type { Area } from '../memory/area.js';
import type { AreaIndex } from '../memory/area-index.js';
import { OriginNotes } from '../origin.js';
import type { LimitsPort } from '../platform/ports.js';
import {
  TRY_NEXT,
  type Bus,
  type Device,
  type Driver,
  type OpenedDevice,
  type OpenOptions,
  type ProbeContext,
  type TakenDevice,
} from './model.js';
import { show } from '../show.js';
import { BoundDevice } from './device.js';
import { matchesIds } from './match.js';
import { parseDeviceSpec, type DeviceSpec } from './device-name.js';
import { GroupMapping, mapOnAll } from './fan-out.js';
import type { MemoryPart } from '../memory/part.js';

/** What happened to a device. `failed`: it reported an error of its own; `lost`: it went away without being removed. */
export type DeviceChange = 'probed' | 'failed' | 'removed' | 'lost';

/** What a registry needs. */
export interface RegistryOptions extends BookSettings, Pick<DomainOptions, 'now' | 'pages'> {
  readonly areas: AreaIndex;
  readonly limits: Pick<LimitsPort, 'lockedMemory'>;
  readonly context: ProbeContext;
  /** Called after every change. */
  readonly changed?: (change: DeviceChange, device: Device, error?: DmaError) => void;
}

/** The holder of the memory of a group that {@link Registry.mapAll} made, for messages. */
const EVERY_DEVICE = 'eal.dmaMapAll (every device, now and later)';

/** All buses, drivers and devices. */
export class Registry {
  readonly #options: RegistryOptions;
  readonly #buses = new Map<string, Bus>();
  readonly #drivers: Driver[] = [];
  readonly #devices = new Map<string, BoundDevice>();
  readonly #domains = new Map<AddressSpace, Domain>();
  /** The number of domains with each granule. */
  readonly #granules = new Map<number, number>();

  /**
   * The largest granule of all domains, in bytes (a power of two): a range that is a multiple of it can be mapped on
   * every device.
   */
  get granule(): number {
    return Math.max(1, ...this.#granules.keys());
  }

  readonly #standing = new Set<GroupMapping>();
  /** Devices that are being opened or removed, by name; the promise resolves when that is over. */
  readonly #inTransition = new Map<string, Promise<void>>();
  /** Devices of this registry that were lost. */
  readonly #lost = new WeakSet<Device>();
  /** The places in the program that mapped a range on a list of devices. */
  readonly #origins: OriginNotes;
  #closed = false;

  constructor(options: RegistryOptions) {
    this.#options = options;
    this.#origins = new OriginNotes(options.origins);
  }

  // --- registering ---

  /** @throws DmaError EEXIST if a bus of this name is registered; EINVAL for an object that is not a bus */
  registerBus(bus: Bus): void {
    mustHandle(bus, ['parse', 'scan', 'describe', 'open', 'match', 'spaceOf', 'iovaWish'], 'registerBus');
    mustBeString(bus.name, 'the name of a bus', 'registerBus');
    mustBeFunction(bus.parse, 'parse', 'registerBus');
    mustBeFunction(bus.open, 'open', 'registerBus');
    if (this.#buses.has(bus.name)) throw twice('bus', bus.name);
    this.#buses.set(bus.name, bus);
  }

  /** Drivers are tried in the order they are registered. @throws DmaError EEXIST, EINVAL as `registerBus` */
  registerDriver(driver: Driver): void {
    mustHandle(driver, ['takes', 'dmaAddressBits', 'spaceOf', 'probe', 'remove'], 'registerDriver');
    mustBeString(driver.name, 'the name of a driver', 'registerDriver');
    mustBeFunction(driver.probe, 'probe', 'registerDriver');
    if (driver.buses !== undefined && !Array.isArray(driver.buses))
      throw invalid('registerDriver', 'buses must be an array of bus names');
    if (this.#drivers.some((other) => other.name === driver.name)) throw twice('driver', driver.name);
    this.#drivers.push(driver);
  }

  /**
   * All buses, in the order in which they are asked: the order of registration, but buses that accept any name come
   * last.
   */
  get buses(): readonly Bus[] {
    return [...this.#buses.values()].sort((a, b) => Number(a.takesAnyName ?? false) - Number(b.takesAnyName ?? false));
  }

  /** All drivers, in the order in which they are tried. */
  get drivers(): readonly Driver[] {
    return this.#drivers;
  }

  // --- finding ---

  /** Names (`bus:name`) of the devices that buses find by themselves, bus by bus. */
  async scan(): Promise<string[]> {
    const found: string[] = [];
    for (const bus of this.buses) for (const name of (await bus.scan?.()) ?? []) found.push(`${bus.name}:${name}`);
    return found;
  }

  /**
   * The probed devices, in the order in which they were probed.
   *
   * @param filter a device name, or DPDK's layered form with parts left out: `bus=vfio-user`, `driver=edu`, `class=dma`;
   *   other keys are compared with the keys that the device was probed with
   * @throws DmaError EINVAL for a malformed filter; ENODEV for a bus that does not exist
   */
  devices(filter?: string): Device[] {
    const all = [...this.#devices.values()].filter((device) => device.state === 'probed');
    if (filter === undefined) return all;
    const spec = parseDeviceSpec(filter);
    const named = spec.name === undefined ? undefined : this.#locate(spec, filter, 'devices');
    const bus = spec.bus === undefined ? undefined : this.#busNamed(spec.bus, 'devices');
    return all.filter(
      (device) =>
        (named === undefined || device.name === `${named.bus.name}:${named.name}`) &&
        (bus === undefined || device.bus === bus) &&
        (spec.driver === undefined || device.driver?.name === spec.driver) &&
        (spec.deviceClass === undefined || device.driver?.deviceClass === spec.deviceClass) &&
        [...spec.args].every(([key, value]) => device.args.get(key) === value),
    );
  }

  /** The probed device called `text`, if any. @throws DmaError EINVAL, or ENODEV for a name that no device can have */
  find(text: string): Device | undefined {
    const { bus, name } = this.#locate(parseDeviceSpec(text), text, 'find');
    const device = this.#devices.get(`${bus.name}:${name}`);
    return device?.state === 'probed' ? device : undefined;
  }

  /** The domain of an address space, while devices are in it. */
  domainOf(space: AddressSpace): Domain | undefined {
    return this.#domains.get(space);
  }

  // --- plug and unplug ---

  /**
   * Opens the device called `text` and gives it to the first driver that takes it. Then maps everything for it that is
   * mapped for every device. If any step fails, all steps are undone.
   *
   * @throws DmaError EINVAL for a malformed name; ENODEV if no bus accepts the name, or the device does not exist;
   *   EEXIST if it is probed already; EBUSY while it is being probed or removed; ENOTSUP if no driver takes it;
   *   ECANCELED if the registry is closed meanwhile; and the errors of bus, driver and mappings
   */
  async probe(text: string, options: OpenOptions = {}): Promise<Device> {
    const spec = parseDeviceSpec(text);
    const { bus, name } = this.#locate(spec, text, 'probe');
    const fullName = `${bus.name}:${name}`;
    this.#checkKeys(bus, name, spec);
    if (options.container !== undefined) checkContainer(bus, name, spec);
    if (this.#devices.has(fullName) && !this.#inTransition.has(fullName))
      throw new DmaError({
        code: 'EEXIST',
        operation: 'probe',
        device: fullName,
        reason: 'the device is probed already',
        hint: 'eal.find(name) returns it; eal.remove(device) removes it',
      });
    return this.#exclusively(fullName, 'probe', (end) => this.#open(bus, name, spec, options, end)).catch(
      (error: unknown) => {
        const isAbsent = isDmaError(error, 'ENODEV') || isDmaError(error, 'ENOTSUP');
        throw isAbsent && isGuess(spec, bus) ? unnamed(error, name, bus).with({ code: 'ENODEV' }) : error;
      },
    );
  }

  /**
   * Removes a device: its driver releases it, its mappings are unmapped, and it is closed.
   *
   * For a device that was lost, only waits until it is gone.
   *
   * @throws DmaError EINVAL if it is not probed; EBUSY while it is being probed or removed, or another thread works it; the first error
   *   while undoing, after all was tried: the device is removed all the same
   */
  async remove(device: Device): Promise<void> {
    mustBe(device, BoundDevice, 'the device', 'remove', 'Device');
    const { name } = device;
    const own = this.#devices.get(name);
    // A lost device goes away by itself: only wait for it.
    if (this.#lost.has(device)) return own === device ? this.#inTransition.get(name) : undefined;
    if (own === undefined || own !== device || (own.state !== 'probed' && !this.#inTransition.has(name)))
      throw invalid('remove', 'the device is not probed', {
        device: name,
        hint:
          own === undefined
            ? 'it was removed before, or was never probed by this Eal'
            : 'it was removed, and then probed again as a new Device',
      });
    mayRemove(own);
    await this.#remove(own);
  }

  async #remove(device: BoundDevice): Promise<void> {
    const { name } = device;
    const errors = await this.#exclusively(name, 'remove', () => {
      device.unshare('remove');
      return this.#takeDown(device);
    });
    debug?.(`removed: ${name}`);
    this.#options.changed?.('removed', device);
    throwFirst(errors, 'remove');
  }

  /**
   * Removes all devices, last first, also those that are still being probed. No device is probed afterwards.
   *
   * @returns the errors while undoing
   */
  async close(): Promise<unknown[]> {
    this.#closed = true;
    const errors: unknown[] = [];
    for (;;) {
      await Promise.all(this.#inTransition.values());
      const all = [...this.#devices.values()].filter(({ state }) => state === 'probed').reverse();
      if (all.length === 0 && this.#inTransition.size === 0) return errors;
      for (const device of all) {
        // A device that was lost meanwhile is waited for on the next pass.
        if (device.state !== 'probed') continue;
        device.stopped = true;
        await this.#remove(device).catch((error: unknown) => errors.push(error));
      }
    }
  }

  // --- from one process to another ---

  /**
   * What keeps the devices from being handed over to another process, as clauses; none if nothing does. Nothing changes.
   */
  handOverObstacles(): string[] {
    const obstacles = [...this.#inTransition.keys()].map((name) => `${name} is being probed or removed`);
    for (const { name, bus, driver, opened } of this.#devices.values()) {
      if (opened.handOver === undefined || bus.takeOver === undefined)
        obstacles.push(`${name} is on the bus ${bus.name}, whose devices can not be handed over`);
      else if (driver !== undefined && (driver.handOver === undefined || driver.takeOver === undefined))
        obstacles.push(`${name} is driven by ${driver.name}, whose devices can not be handed over`);
    }
    return obstacles;
  }

  /**
   * Stops using all devices, so that another process can continue with them. They go on with what they have, and stay
   * mapped. `resume` or `end` of the result follows.
   *
   * @param why of the calls that are refused meanwhile
   * @param leave is this group not handed over here?
   * @throws DmaError of a device, a driver or a domain; then all devices go on
   */
  async handOver(why: DmaError, leave: (group: GroupMapping) => boolean): Promise<Paused> {
    const undo: (() => void)[] = [];
    const paused: Paused[] = [];
    try {
      for (const domain of this.#domains.values()) {
        undo.unshift(() => domain.resume());
        await domain.pause(why);
      }
      const groups = [...this.#standing].filter((group) => !leave(group));
      const described = new Set<Domain>();
      const devices: JsonObject[] = [];
      const fds: number[] = [];
      for (const device of this.#devices.values()) {
        const { domain, driver, instance } = device.binding ?? {};
        const driverPart = await driver?.handOver?.(device, instance, why);
        if (driverPart !== undefined) paused.push(driverPart);
        undo.unshift(() => driverPart?.resume());
        const busPart = await device.opened.handOver?.(why);
        if (busPart !== undefined) paused.push(busPart);
        undo.unshift(() => busPart?.resume());
        fds.push(...(busPart?.fds ?? []));
        // What the domain maps for all its devices goes along with the first of them.
        const own = domain === undefined || described.has(domain) ? [] : domain.handedMappings();
        if (domain !== undefined) described.add(domain);
        const mappings = domain?.mappingsFor(device.name) ?? [];
        devices.push({
          name: device.busName,
          bus: device.bus.name,
          args: [...device.args].map(([key, value]) => ({ key, value })),
          driver: driver?.name,
          driverState: driverPart?.state,
          fds: busPart?.fds.length,
          state: busPart?.state,
          mappings: (domain?.handedMappings(device.name) ?? []).map((mapping, i) => {
            const group = groups.findIndex((each) => each.of(device) === mappings[i]);
            return { ...mappingState(mapping), group: group < 0 ? undefined : group };
          }),
          own: own.map(mappingState),
        });
      }
      const standing = groups.map(({ target: { va, length }, options }) => ({ va, length, options: { ...options } }));
      return {
        state: { devices, standing },
        fds,
        resume: () => throwFirst(undoAll(undo), 'handOver'),
        end: (error) => throwFirst(this.#endHanded(paused, error), 'handOver'),
      };
    } catch (error) {
      throw withUndo(error, 'handOver', undoAll(undo));
    }
  }

  /** Another process has all devices. @returns the errors */
  #endHanded(paused: readonly Paused[], error: DmaError): unknown[] {
    this.#closed = true;
    const devices = [...this.#devices.values()];
    const domains = [...this.#domains.values()];
    for (const device of devices) device.handedOver = error;
    const errors = undoAll([
      ...domains.map((domain) => () => domain.abandon(error)),
      ...paused.map((each) => () => each.end(error)),
    ]);
    for (const device of devices) {
      device.state = 'gone';
      device.binding = undefined;
    }
    this.#devices.clear();
    this.#domains.clear();
    this.#granules.clear();
    for (const group of [...this.#standing]) group.abandon();
    return errors;
  }

  /**
   * Continues with devices that another process has handed over. None is accessed before `start` of the result; `abandon`
   * gives them up, and leaves them to the other process.
   *
   * @param fds the descriptors; they belong to the registry from now on, also if it throws
   * @param close closes one of them
   */
  takeOver(
    state: Fields,
    fds: readonly number[],
    close: (fd: number) => void,
  ): { readonly start: () => void; readonly abandon: (error: DmaError) => void } {
    const left = [...fds];
    const taken: { readonly device: BoundDevice; readonly bus: TakenDevice; readonly start?: () => void }[] = [];
    const abandon = (error: DmaError): void =>
      throwFirst(
        this.#endHanded(
          taken.map(({ bus }) => ({ state: {}, fds: [], resume: () => undefined, end: (why) => bus.abandon(why) })),
          error,
        ),
        'takeOver',
      );
    try {
      const groups = state.list('standing', Infinity).map((group) => this.#takeOverGroup(group));
      for (const each of state.list('devices')) taken.push(this.#takeOverDevice(each, left, groups));
    } catch (error) {
      const failure = withUndo(error, 'takeOver', undoAll(left.map((fd) => () => close(fd))));
      throw withUndo(failure, 'takeOver', undoAll([() => abandon(failure)]));
    }
    return {
      abandon,
      start: () => {
        for (const { device, bus, start } of taken) {
          // It is too late to refuse: a device that can not be used any more is lost.
          for (const error of undoAll([() => bus.start(), () => start?.()]))
            device.lost ??= withUndo(error, 'takeOver', []);
          device.state = 'probed';
          debug?.(`taken over: ${device.name}, driver ${device.driver?.name ?? 'none'}`);
          if (device.lost === undefined) this.#options.changed?.('probed', device);
          else this.#wasLost(device, device.lost);
        }
      },
    };
  }

  /**
   * Maps what is mapped for every device on those devices that were taken over and do not have it. A device on which that
   * fails stays, and is told as failed.
   */
  async mapStanding(): Promise<void> {
    for (const device of this.devices())
      for (const group of [...this.#standing])
        if (device.domain !== undefined && group.of(device) === undefined)
          await group.addAsync(device).catch((error: unknown) => {
            this.#options.changed?.('failed', device, withUndo(error, 'takeOver', []));
          });
  }

  #takeOverGroup(state: Fields): GroupMapping {
    const { group, area } = this.#standingGroup(
      { va: state.number('va'), length: state.number('length') },
      state.objectAt('options').raw,
      'takeOver',
    );
    this.#standing.add(group);
    area.hold(EVERY_DEVICE);
    return group;
  }

  #takeOverDevice(
    state: Fields,
    left: number[],
    groups: readonly GroupMapping[],
  ): { readonly device: BoundDevice; readonly bus: TakenDevice; readonly start?: () => void } {
    const bus = this.#busNamed(state.string('bus'), 'takeOver');
    const name = state.string('name');
    const args = new Map(state.list('args').map((each) => [each.string('key'), each.string('value')]));
    const driverName = state.string('driver');
    const driver = this.#drivers.find((each) => each.name === driverName);
    if (bus.takeOver === undefined || driver?.takeOver === undefined)
      throw new DmaError({
        code: 'ENOTSUP',
        operation: 'takeOver',
        device: `${bus.name}:${name}`,
        reason: `this program has no driver ${show(driverName)} that takes devices over`,
        hint: `registered drivers: ${this.#drivers.map((each) => each.name).join(', ')}`,
      });
    const handed = { state: state.objectAt('state'), fds: left.splice(0, state.number('fds')) };
    const taken = bus.takeOver(name, args, handed);
    const { opened } = taken;
    const device = new BoundDevice(bus, name, args, opened, this.#options.areas);
    try {
      this.#devices.set(device.name, device);
      this.#listen(device, opened);
      const domain = this.#join(device, driver);
      device.binding = { driver, domain };
      for (const mapping of state.list('mappings', Infinity)) {
        const made = domain?.takeOver(device.name, mappingOf(mapping));
        const group = mapping.has('group') ? groups.at(mapping.number('group')) : undefined;
        if (group !== undefined && made !== undefined) group.takeOver(device, made);
      }
      for (const mapping of state.list('own', Infinity)) domain?.takeOver(undefined, mappingOf(mapping));
      const { instance, start } = driver.takeOver(device, this.#options.context, state.objectAt('driverState'));
      device.binding = { driver, domain, instance };
      return { device, bus: taken, ...(start === undefined ? {} : { start }) };
    } catch (error) {
      this.#devices.delete(device.name);
      const failure = withUndo(error, 'takeOver', []);
      throw withUndo(failure, 'takeOver', undoAll([() => taken.abandon(failure)])).with({ device: device.name });
    }
  }

  // --- one range on many devices ---

  /**
   * Maps a range on each of `devices`, or on none. Without a list: on every probed device, and on every device that is
   * probed later, until the group is unmapped; a device on which mapping fails is not probed. Devices that no address
   * space exists for, because neither their driver nor their bus provides one, are then left out.
   *
   * @throws DmaError of the device that failed; mappings made before it are undone
   */
  mapAll(target: MemoryPart, devices?: Iterable<Device>, options?: MapOptions): GroupMapping {
    const operation = 'dmaMapAll';
    const wanted = targetOf(target, operation);
    const how = options === undefined ? undefined : optionsOf<MapOptions>(options, MAP_OPTIONS, operation);
    if (devices !== undefined) {
      const origin = this.#origins.note(this.mapAll);
      return mapOnAll(new GroupMapping(wanted, how, undefined, origin), listOf(devices, operation));
    }
    const { group, area } = this.#standingGroup(wanted, how, operation);
    this.#stand(group);
    // Hold the memory even if there is no device yet: devices probed later must get this memory, not other memory at
    // its address.
    area.hold(EVERY_DEVICE);
    return group;
  }

  /**
   * As {@link Registry.mapAll}, without blocking the event loop.
   *
   * @throws DmaError also ECANCELED once `work.signal` is aborted
   */
  async mapAllAsync(
    target: MemoryPart,
    devices: Iterable<Device> | undefined,
    options: Omit<MapAsyncOptions, keyof LongWorkOptions>,
    work: LongWorkOptions,
  ): Promise<GroupMapping> {
    const operation = 'dmaMapAllAsync';
    const wanted = targetOf(target, operation);
    const { chunkBytes, ...others } = options;
    const how = optionsOf<MapOptions>(others, MAP_OPTIONS, operation);
    const pieces = chunkBytes === undefined ? work : { ...work, chunkBytes };
    if (devices === undefined) {
      const { group, area } = this.#standingGroup(wanted, how, operation);
      area.hold(EVERY_DEVICE);
      return this.#standAsync(group, pieces, operation);
    }
    const list = new Set(listOf(devices, operation));
    const group = new GroupMapping(wanted, how, undefined, this.#origins.note(this.mapAllAsync));
    const report = progressOf(work.onProgress, list.size * wanted.length);
    let before = 0;
    try {
      for (const device of list) {
        await group.addAsync(device, { ...pieces, onProgress: ({ doneBytes }) => report(before + doneBytes) });
        before += wanted.length;
      }
      return group;
    } catch (error) {
      const told = toldAs(operation, ['dmaMapAsync'], error);
      throw withUndo(told, operation, await group.dropAsync(group.mappings.map(({ device }) => device)));
    }
  }

  #standingGroup(
    target: MemoryPart,
    options: MapOptions | undefined,
    operation: string,
  ): { readonly group: GroupMapping; readonly area: Area } {
    const keeper = 'unmap() of what eal.dmaMapAll returned';
    const ends = (): void => {
      if (this.#standing.delete(group)) area.release(EVERY_DEVICE);
    };
    const group: GroupMapping = new GroupMapping(target, options, { keeper, ends });
    const area = checkTarget(this.#options.areas, group.target, group.options, operation);
    return { group, area };
  }

  /**
   * As {@link Registry.mapAll} on every device, for memory whose owner keeps it until the group is unmapped.
   *
   * @param keeper the call that unmaps it, for messages
   */
  reach(target: MemoryPart, keeper: string): GroupMapping {
    const ends = (): void => void this.#standing.delete(group);
    const group: GroupMapping = new GroupMapping(target, undefined, { keeper, ends });
    this.#stand(group);
    return group;
  }

  /** As {@link reach}, without blocking the event loop. @throws DmaError ECANCELED once `signal` is aborted */
  async reachAsync(target: MemoryPart, keeper: string, work: LongWorkOptions): Promise<GroupMapping> {
    const ends = (): void => void this.#standing.delete(group);
    const group: GroupMapping = new GroupMapping(target, undefined, { keeper, ends });
    return this.#standAsync(group, work, 'reach');
  }

  /** As {@link #stand}, without blocking the event loop. If it fails, the group is unmapped. */
  async #standAsync(group: GroupMapping, work: MapAsyncOptions, operation: string): Promise<GroupMapping> {
    // From now on, devices that are being probed map the group themselves.
    this.#standing.add(group);
    let before = 0;
    try {
      const isOpen = (device: Device): boolean =>
        device.state === 'probed' && device.domain !== undefined && group.of(device) === undefined;
      // Devices come and go while the event loop runs: repeat until no device is left to map.
      for (let open = this.devices().filter(isOpen); open.length > 0; open = this.devices().filter(isOpen)) {
        const report = progressOf(work.onProgress, group.target.length * (before + open.length));
        for (const device of open) {
          if (!isOpen(device)) continue;
          try {
            const done = before * group.target.length;
            await group.addAsync(device, { ...work, onProgress: ({ doneBytes }) => report(done + doneBytes) });
            before++;
          } catch (error) {
            // A device that was removed or lost meanwhile does not need the mapping.
            if (device.state === 'probed' || work.signal?.aborted === true) throw error;
          }
        }
      }
      return group;
    } catch (error) {
      const failures: unknown[] = [];
      await group.unmapAsync().catch((why: unknown) => failures.push(why));
      throw withUndo(error, operation, failures);
    }
  }

  /**
   * Unmaps groups that `mapAll` made for every device, last first.
   *
   * @throws DmaError of the device that failed; groups unmapped before it are mapped again
   */
  unmapAll(groups: readonly GroupMapping[]): void {
    const undo: (() => void)[] = [];
    try {
      for (const group of [...groups].reverse()) {
        undo.unshift(() => this.#stand(group));
        group.unmap();
      }
    } catch (error) {
      throw withUndo(error, 'dmaUnmapAll', undoAll(undo));
    }
  }

  /** As {@link unmapAll}, without blocking the event loop. */
  async unmapAllAsync(groups: readonly GroupMapping[]): Promise<void> {
    const undo: (() => void)[] = [];
    try {
      for (const group of [...groups].reverse()) {
        undo.unshift(() => this.#stand(group));
        await group.unmapAsync();
      }
    } catch (error) {
      throw withUndo(error, 'dmaUnmapAll', undoAll(undo));
    }
  }

  /** The groups that are mapped for every device. */
  get standing(): Iterable<GroupMapping> {
    return this.#standing;
  }

  // --- inside ---

  /** Maps a group on every device that does not have it yet, and on devices that are probed later. */
  #stand(group: GroupMapping): void {
    mapOnAll(
      group,
      this.devices().filter((device) => device.domain !== undefined),
    );
    this.#standing.add(group);
  }

  /** The steps of `probe`. The device is locked for other transitions until `end` is called. */
  async #open(bus: Bus, name: string, spec: DeviceSpec, options: OpenOptions, end: () => void): Promise<BoundDevice> {
    this.#mustBeOpen(bus, name);
    let device: BoundDevice | undefined;
    try {
      const opened = await bus.open(name, spec.args, options);
      const { container } = options;
      const args = container === undefined ? spec.args : new Map(spec.args).set('container', container.name);
      device = new BoundDevice(bus, name, args, opened, this.#options.areas);
      this.#devices.set(device.name, device);
      await this.#bringUp(device, opened, spec);
      // The device may have been lost while the event loop ran.
      this.#mustGoOn(device);
    } catch (error) {
      const failure = withUndo(
        device?.lost ?? error,
        'probe',
        device === undefined ? [] : await this.#takeDown(device),
      );
      if (failure.device !== undefined) throw failure;
      throw failure.with({ device: `${bus.name}:${name}`, cause: failure });
    }
    // Without awaiting in between: a device that is lost after this counts as probed, and #lose can take it down.
    device.state = 'probed';
    end();
    debug?.(`probed: ${device.name}, driver ${device.driver?.name ?? 'none'}, ${device.domain?.kind ?? 'no DMA'}`);
    this.#options.changed?.('probed', device);
    return device;
  }

  async #bringUp(device: BoundDevice, opened: OpenedDevice, spec: DeviceSpec): Promise<void> {
    this.#listen(device, opened);
    await this.#bind(device, opened, spec);
    this.#mustGoOn(device);
    // Groups come and go while the event loop runs: repeat until none is left to map.
    const isOpen = (group: GroupMapping): boolean => device.domain !== undefined && group.of(device) === undefined;
    for (let group = this.#first(isOpen); group !== undefined; group = this.#first(isOpen)) {
      await group.addAsync(device);
      if (!this.#standing.has(group)) await group.dropAsync([device.name]);
      this.#mustGoOn(device);
    }
  }

  /** Notices what its bus tells about the device. */
  #listen(device: BoundDevice, opened: OpenedDevice): void {
    opened.onLost((error) => this.#wasLost(device, error));
    opened.onError?.((error) => this.#options.changed?.('failed', device, error));
  }

  #wasLost(device: BoundDevice, error: DmaError): void {
    device.lost = error;
    this.#lost.add(device);
    this.#cutOff(device, error);
    if (device.state === 'probed') void this.#lose(device, error);
  }

  #first(wanted: (group: GroupMapping) => boolean): GroupMapping | undefined {
    for (const group of this.#standing) if (wanted(group)) return group;
    return undefined;
  }

  /** @throws the reason why probing the device can not continue */
  #mustGoOn(device: BoundDevice): void {
    if (device.lost !== undefined) throw device.lost;
    this.#mustBeOpen(device.bus, device.busName);
  }

  #mustBeOpen(bus: Bus, name: string): void {
    if (!this.#closed) return;
    const device = `${bus.name}:${name}`;
    throw stopped('probe').with({ device });
  }

  /** Finds the driver of the device, and with it the domain. */
  async #bind(device: BoundDevice, opened: OpenedDevice, spec: DeviceSpec): Promise<void> {
    const { bus } = device;
    const candidates = this.#driversOf(bus).filter(
      (driver) =>
        (spec.driver === undefined || driver.name === spec.driver) &&
        (spec.deviceClass === undefined || driver.deviceClass === spec.deviceClass) &&
        matchesIds(driver, opened.ids) &&
        (driver.takes?.(opened) ?? true) &&
        (bus.match?.(opened, driver) ?? true),
    );
    for (const driver of candidates) {
      device.binding = { driver, domain: this.#join(device, driver) };
      const instance = await driver.probe(device, this.#options.context);
      if (instance !== TRY_NEXT) {
        device.binding = { ...device.binding, instance };
        return;
      }
      await this.#leave(device);
      device.binding = undefined;
    }
    throw new DmaError({
      code: 'ENOTSUP',
      operation: 'probe',
      device: device.name,
      reason:
        candidates.length === 0 ? 'no driver matches the device' : 'every driver that matches declined the device',
      hint: `registered drivers: ${this.#drivers.map((driver) => driver.name).join(', ')}`,
    });
  }

  /**
   * Undoes the steps of probing that were done.
   *
   * @returns the errors; none for a lost device, because the loss explains them
   */
  async #takeDown(device: BoundDevice): Promise<unknown[]> {
    const errors: unknown[] = [];
    const attempt = async (step: () => Promise<void> | void): Promise<void> => {
      try {
        await step();
      } catch (error) {
        errors.push(error);
      }
    };
    const { binding } = device;
    // From now on nothing new is mapped for it.
    device.state = 'gone';
    // The program's calls have asked before. Now it goes, whoever has attached to it.
    device.loseShare();
    for (const mapping of device.domain?.mappingsFor(device.name) ?? []) mapping.loseShare();
    // The driver goes first: a device that still uses its rings must not lose their mappings.
    if (binding !== undefined && 'instance' in binding)
      await attempt(() => binding.driver.remove?.(device, binding.instance));
    for (const group of [...this.#standing]) errors.push(...(await group.dropAsync([device.name])));
    await attempt(() => this.#leave(device));
    device.binding = undefined;
    await attempt(() => device.close());
    this.#devices.delete(device.name);
    return device.lost === undefined ? errors : [];
  }

  /** Takes down a lost device. Other devices in its domain keep their mappings. */
  #cutOff(device: BoundDevice, error: DmaError): void {
    device.loseShare();
    device.domain?.lose(device.name, error);
  }

  async #lose(device: BoundDevice, error: DmaError): Promise<void> {
    await this.#exclusively(device.name, 'remove', () => this.#takeDown(device));
    debug?.(`lost: ${device.name}: ${String(error)}`);
    this.#options.changed?.('lost', device, error);
  }

  /** Puts the device into the domain of its address space; `undefined` if neither driver nor bus provides one. */
  #join(device: BoundDevice, driver: Driver): Domain | undefined {
    const bits = driver.dmaAddressBits?.(device.args) ?? Infinity;
    const space = driver.spaceOf?.(device) ?? device.bus.spaceOf?.(device);
    if (space === undefined) return undefined;
    const domain = this.#domains.get(space) ?? this.#openDomain(space, device);
    domain.attach(device.name, bits);
    return domain;
  }

  #openDomain(space: AddressSpace, device: BoundDevice): Domain {
    mustBeSpace(space, device);
    const { granule } = space.constraints;
    const closed = (): void => {
      this.#domains.delete(space);
      const others = (this.#granules.get(granule) ?? 1) - 1;
      if (others > 0) this.#granules.set(granule, others);
      else this.#granules.delete(granule);
    };
    try {
      const domain = new Domain({ ...this.#options, name: space.name ?? device.name, space, closed });
      this.#domains.set(space, domain);
      this.#granules.set(granule, (this.#granules.get(granule) ?? 0) + 1);
      return domain;
    } catch (error) {
      throw withUndo(error, 'probe', undoAll([() => space.close()]));
    }
  }

  async #leave(device: BoundDevice): Promise<void> {
    await device.domain?.detach(device.name, device.lost);
  }

  /**
   * Runs `work` while no other transition of this device can begin.
   *
   * @param work may call its argument to end the transition before it returns
   */
  async #exclusively<T>(name: string, operation: string, work: (end: () => void) => Promise<T>): Promise<T> {
    if (this.#inTransition.has(name))
      throw new DmaError({
        code: 'EBUSY',
        operation,
        device: name,
        reason: 'the device is being probed or removed',
        hint: 'wait until that is finished',
      });
    let resolve = (): void => undefined;
    const transition = new Promise<void>((ended) => (resolve = ended));
    this.#inTransition.set(name, transition);
    const end = (): void => {
      if (this.#inTransition.get(name) === transition) this.#inTransition.delete(name);
      resolve();
    };
    try {
      return await work(end);
    } finally {
      end();
    }
  }

  /**
   * The drivers that work on a bus, in the order in which they are tried: first those that name the bus, then those for
   * every bus.
   */
  #driversOf({ name }: Bus): Driver[] {
    const named = this.#drivers.filter(({ buses }) => buses?.includes(name) === true);
    return [...named, ...this.#drivers.filter(({ buses }) => buses === undefined)];
  }

  /**
   * @throws DmaError EINVAL for a key that is known neither to the bus nor to its drivers, if all of them list their
   * keys
   */
  #checkKeys(bus: Bus, name: string, spec: DeviceSpec): void {
    const { args, driver } = spec;
    const drivers = this.#driversOf(bus).filter(({ name: each }) => driver === undefined || each === driver);
    const known = [...new Set([bus, ...drivers].flatMap(({ keys }) => keys ?? '*'))];
    if (known.includes('*')) return;
    for (const key of args.keys()) {
      if (known.includes(key)) continue;
      const hint = known.length === 0 ? 'names of such devices have no keys' : `known keys: ${known.join(', ')}`;
      const device = `${bus.name}:${name}`;
      const error = invalid('probe', `unknown key ${show(key)} in the device name`, { device, hint });
      throw isGuess(spec, bus) ? unnamed(error, name, bus) : error;
    }
  }

  #busNamed(name: string, operation: string): Bus {
    const bus = this.#buses.get(name);
    if (bus !== undefined) return bus;
    const hint = `registered buses: ${this.buses.map((each) => each.name).join(', ')}`;
    throw new DmaError({ code: 'ENODEV', operation, reason: `there is no bus "${name}"`, hint });
  }

  /**
   * The bus and the full device name that a text means; a text without a bus means the first bus that accepts the name.
   */
  #locate(spec: DeviceSpec, text: string, operation: string): { bus: Bus; name: string } {
    if (spec.name === undefined)
      throw invalid(operation, `"${text}" names no device`, { hint: 'add name=... or addr=...' });
    const buses = spec.bus === undefined ? this.buses : [this.#busNamed(spec.bus, operation)];
    for (const bus of buses) {
      const name = bus.parse(spec.name);
      if (name !== undefined) return { bus, name };
    }
    const code = 'ENODEV';
    if (spec.bus === undefined) {
      const reason = `no bus has a device that could be called "${spec.name}"`;
      throw new DmaError({ code, operation, reason, hint: WRITE_BUS });
    }
    const [{ name, naming }] = buses;
    const reason = `the bus ${name} has no device that could be called "${spec.name}"`;
    throw new DmaError({ code, operation, reason, hint: naming && `on ${name} a device is called ${naming}` });
  }
}

const WRITE_BUS = 'write bus:name, such as vfio-user:/run/device.sock or vdev:edu0';

/** Whether the text named no bus and a bus that accepts any name was tried. The user may have meant another bus. */
function isGuess(spec: DeviceSpec, bus: Bus): boolean {
  return spec.bus === undefined && bus.takesAnyName === true;
}

/** The error for such a text: the user may not have meant this bus. */
function unnamed(error: DmaError, name: string, bus: Bus): DmaError {
  const reason = `"${name}" names no bus, and opening it as a device of ${bus.name} failed: ${error.reason}`;
  return error.with({ operation: 'probe', device: undefined, reason, hint: WRITE_BUS, cause: error });
}

/** The devices of the caller's list. @throws DmaError EINVAL if an item is not a device */
function listOf(devices: Iterable<Device>, operation: string): Device[] {
  const list = reading(operation, 'the list of devices', () => [...devices]);
  for (const device of list) mustBe(device, BoundDevice, 'every item of the list of devices', operation, 'Device');
  return list;
}

/** @throws DmaError EINVAL for an incomplete address space: an error in the driver or the bus */
function mustBeSpace(space: AddressSpace, { name, bus }: BoundDevice): void {
  const missing = (['map', 'unmap', 'close'] as const).filter((call) => typeof space[call] !== 'function');
  if (missing.length === 0) return;
  throw invalid('probe', `the address space of the device has no ${missing.join(' and no ')}`, {
    device: name,
    hint: `spaceOf of its driver, or of the bus ${bus.name}, must return an AddressSpace`,
  });
}

function twice(what: string, name: string): DmaError {
  const hint = `names must be unique; eal.${what === 'bus' ? 'buses' : 'drivers'} lists the registered ones`;
  return new DmaError({
    code: 'EEXIST',
    operation: 'register',
    reason: `a ${what} ${name} is registered already`,
    hint,
  });
}

/** @throws DmaError EINVAL if the bus does not support containers, or if two are given */
function checkContainer(bus: Bus, name: string, { args }: DeviceSpec): void {
  const device = `${bus.name}:${name}`;
  if (bus.takesContainers !== true)
    throw invalid('probe', `devices of the bus ${bus.name} are not put into containers`, { device });
  if (args.has('container'))
    throw invalid('probe', 'two containers are given: one in the device name and one in the options', { device });
}

/** @throws DmaError EBUSY if the driver of the device can not let go of it now */
function mayRemove(device: BoundDevice): void {
  const { binding } = device;
  if (binding !== undefined && 'instance' in binding && device.lost === undefined)
    binding.driver.mayRemove?.(device, binding.instance);
}

/** A mapping, as {@link mappingOf} reads it. */
function mappingState({ va, length, access, pieces }: HandedMapping): JsonObject {
  return { va, length, access, pieces: pieces.map((piece) => ({ ...piece })) };
}

/** A mapping that another process has handed over. @throws DmaError EPROTO */
function mappingOf(state: Fields): HandedMapping {
  return {
    va: state.number('va'),
    length: state.number('length'),
    access: state.word('access', ACCESSES),
    pieces: state
      .list('pieces', Infinity)
      .map((piece) => ({ va: piece.number('va'), iova: piece.number('iova'), length: piece.number('length') })),
  };
}
