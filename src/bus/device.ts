/** The devices of a registry: how a call on a device finds its domain. */
import { isA, mustBeObject, optionsOf, reading, stopped } from '../check.js';
import { DmaError, invalid, named, throwFirst, undoAll } from '../errors.js';
import type { Domain, MapAsyncOptions } from '../dma/domain.js';
import type { Explanation } from '../dma/explain.js';
import { lostDevice, Mapping } from '../dma/mapping.js';
import type { DmaAccess } from '../dma/address-space.js';
import type { MapOptions } from '../dma/plan.js';
import { show } from '../show.js';
import { Turns, mustGoOn } from '../long-work.js';
import { Range } from '../ranges.js';
import { isAddress, type Iova, type IovaLike, type Va, type VaLike } from '../units.js';
import type { Description } from './description.js';
import type { DeviceAccess } from './device-access.js';
import type { Pool } from '../memory/pool/pool.js';
import type { Shared } from '../memory/shared/shared.js';
import { notShareable, type Share } from '../memory/shared/shares.js';
import type { AttachedDevice, DeviceFacts } from './attached-device.js';
import { MapOnMiss } from './map-on-miss.js';
import { dmaMapPool, dmaMapPoolAsync, type PoolMapping } from './map-pool.js';
import type { AreaIndex } from '../memory/area-index.js';
import type { Bus, Device, Driver, ExplainedFault, IdMatch, OpenedDevice } from './model.js';
import { shortForm } from '../short-form.js';
import { delay, now } from '../timers.js';
import type { MemoryPart } from '../memory/part.js';
import { STAYS } from '../stays.js';

/** The driver that a device is bound to, and what came of it. */
interface Binding {
  readonly driver: Driver;
  readonly domain: Domain | undefined;
  instance?: unknown;
}

const MISS_OPTIONS = { unit: ['area', 'pages'] } as const;

const FAULT_OPTIONS = { after: 'number', timeoutMs: 'number', signal: 'signal' } as const;

/** How often the bus is asked for new faults: it gives no notification. */
const FAULT_POLL_MS = 20;

/** A device that a registry has opened. See {@link Device} for its members. */
export class BoundDevice implements Device {
  /** @internal */
  readonly stays = STAYS;
  readonly name: string;
  readonly bus: Bus;
  readonly busName: string;
  readonly args: ReadonlyMap<string, string>;
  // Set by the registry.
  state: Device['state'] = 'opening';
  lost: DmaError | undefined;
  /** Whether it was removed because the registry was closed. */
  stopped = false;
  /** Why it can not be used any more: another process has it. */
  handedOver: DmaError | undefined;
  readonly #opened: OpenedDevice;
  readonly #areas: AreaIndex;
  #binding: Binding | undefined;
  /** The last domain it was in. It can still explain addresses after the device is lost. */
  #lastDomain: Domain | undefined;
  #share: Share<AttachedDevice> | undefined;

  constructor(bus: Bus, busName: string, args: ReadonlyMap<string, string>, opened: OpenedDevice, areas: AreaIndex) {
    this.#areas = areas;
    this.name = `${bus.name}:${busName}`;
    this.bus = bus;
    this.busName = busName;
    this.args = args;
    this.#opened = opened;
  }

  get ids(): Required<IdMatch> | undefined {
    return this.#opened.ids;
  }

  get binding(): Binding | undefined {
    return this.#binding;
  }

  set binding(binding: Binding | undefined) {
    this.#binding = binding;
    if (binding !== undefined) this.#lastDomain = binding.domain;
  }

  get access(): DeviceAccess {
    if (this.handedOver !== undefined) throw this.handedOver.with({ operation: 'access', device: this.name });
    // A lost device stays accessible to its driver until the driver has released it.
    if (this.lost !== undefined && this.binding === undefined) throw lostDevice('access', this.name, this.lost);
    const { access } = this.#opened;
    if (access !== undefined) return access;
    const hint = 'device.use(driver) returns the object that its driver provides';
    throw new DmaError({
      code: 'ENOTSUP',
      operation: 'access',
      device: this.name,
      reason: 'the device has no registers',
      hint,
    });
  }

  /** What its bus opened. */
  get opened(): OpenedDevice {
    return this.#opened;
  }

  get handle(): unknown {
    return this.#opened.handle;
  }

  get driver(): Driver | undefined {
    return this.binding?.driver;
  }

  get domain(): Domain | undefined {
    return this.binding?.domain;
  }

  async describe(): Promise<Description | undefined> {
    return this.state === 'gone' || this.lost !== undefined ? undefined : this.#opened.describe?.();
  }

  use<T>(driver: Driver<T>): T {
    const { binding } = this;
    if (binding?.driver === driver && this.state === 'probed') return binding.instance as T;
    if (typeof driver !== 'object' || driver === null)
      throw invalid('use', `a driver is an object, not ${show(driver)}`, {
        device: this.name,
        hint: driverHint(binding),
      });
    if (this.lost !== undefined) throw lostDevice('use', this.name, this.lost);
    const name: unknown = reading('use', 'the driver', () => driver.name);
    if (typeof name !== 'string')
      throw invalid('use', 'the driver has no name', { device: this.name, hint: driverHint(binding) });
    const named = show(name).slice(1, -1);
    const has = binding === undefined ? 'has no driver' : `is driven by ${binding.driver.name}, not by ${named}`;
    if (this.state === 'gone') throw this.#hasNoDriver('use');
    const reason = this.state === 'probed' ? has : 'is still being probed';
    const hint =
      this.state !== 'probed'
        ? 'await the result of eal.probe'
        : binding === undefined
          ? 'register a driver for the device, eal.remove(device), then probe it again'
          : `device.driver is its driver; "bus=${this.bus.name},name=${this.busName}/driver=${named}" probes it with another`;
    throw invalid('use', `the device ${reason}`, { device: this.name, hint });
  }

  dmaMap(target: MemoryPart, options?: MapOptions): Mapping {
    return this.#mustTakeMappings('dmaMap').mapFor(this.name, target, options);
  }

  async dmaMapAsync(target: MemoryPart, options?: MapAsyncOptions): Promise<Mapping> {
    return this.#mustTakeMappings('dmaMapAsync').mapForAsync(this.name, target, options);
  }

  dmaUnmap(target: Mapping | (MemoryPart & { readonly iova?: IovaLike })): void {
    // The mappings of a lost device are gone already.
    if (this.lost !== undefined && this.binding === undefined) return;
    const domain = this.#mustHaveDomain('dmaUnmap');
    if (!isA(target, Mapping)) return domain.unmapFor(this.name, target);
    if (target.device !== this.name)
      throw invalid('dmaUnmap', `the mapping belongs to ${target.device}`, {
        range: target.range,
        device: this.name,
        hint: 'mapping.unmap() unmaps it from its own device',
      });
    target.unmap();
  }

  dmaUnmapAll(): void {
    const errors = undoAll(this.#unmappable().map((mapping) => () => mapping.unmap()));
    throwFirst(errors, 'dmaUnmapAll');
  }

  async dmaUnmapAllAsync(): Promise<void> {
    const errors: unknown[] = [];
    const turns = new Turns();
    for (const mapping of this.#unmappable()) {
      if (turns.due) await turns.next();
      // It may have been unmapped while the event loop ran.
      if (mapping.live) await mapping.unmapAsync().catch((error: unknown) => errors.push(error));
    }
    throwFirst(errors, 'dmaUnmapAllAsync');
  }

  dmaMapPool(pool: Pool, options?: Pick<MapOptions, 'access'>): PoolMapping {
    this.#mustTakeMappings('dmaMapPool');
    mustBeObject(pool, 'pools', 'dmaMapPool');
    return dmaMapPool(this, pool, this.#areas, options);
  }

  async dmaMapPoolAsync(pool: Pool, options?: Omit<MapAsyncOptions, 'iova'>): Promise<PoolMapping> {
    this.#mustTakeMappings('dmaMapPoolAsync');
    mustBeObject(pool, 'pools', 'dmaMapPoolAsync');
    return dmaMapPoolAsync(this, pool, this.#areas, options);
  }

  mapOnMiss(options?: { readonly unit?: 'area' | 'pages' }): MapOnMiss {
    const { unit } = optionsOf(options, MISS_OPTIONS, 'mapOnMiss');
    this.#mustTakeMappings('mapOnMiss');
    return new MapOnMiss(this, this.#areas, unit);
  }

  iovaOf(memory: MemoryPart | VaLike): Iova {
    const domain = this.#mustHaveDomain('iovaOf');
    const isAt = typeof memory === 'number';
    if (!isAt) mustBeObject(memory, 'memory and VAs', 'iovaOf');
    let va: number;
    let length: number;
    let isLive: boolean;
    try {
      va = isAt ? memory : memory.va;
      length = isAt ? 1 : memory.length;
      isLive = isAt || memory.live !== false;
    } catch (cause) {
      throw invalid('iovaOf', 'reading the properties of the memory failed', { device: this.name, cause });
    }
    if (isLive && isAddress(va) && isAddress(length) && length > 0) {
      const iova = domain.table.iovaOfRange(va, length);
      if (iova >= 0) return iova as Iova;
    }
    throw this.#noIova(domain, new Range<Va>(va as Va, length, 'iovaOf'), isLive);
  }

  share(): Shared<AttachedDevice> {
    if (this.#share?.open === true) return this.#share.description;
    if (this.state !== 'probed' || this.lost !== undefined) throw this.#hasNoDriver('share');
    const { shares } = this.#areas;
    if (shares === undefined) throw notShareable('share');
    const { name, driver, domain } = this;
    const facts: DeviceFacts = {
      name,
      driver: driver?.name,
      domain: domain === undefined ? undefined : { name: domain.name, kind: domain.kind },
    };
    const what = `the device ${name}`;
    this.#share = shares.add({ kind: 'device', what, facts: { ...facts }, more: domain?.sharedTable });
    return this.#share.description;
  }

  /**
   * Ends what of it other threads can attach to, its mappings included.
   *
   * @throws DmaError EBUSY, naming them, while any have; then nothing has changed
   */
  unshare(operation: string): void {
    const mappings = this.domain?.mappingsFor(this.name) ?? [];
    try {
      this.#share?.mustBeFree(operation);
      for (const mapping of mappings) mapping.mustBeUnshared(operation);
      this.#share?.end(operation);
      for (const mapping of mappings) mapping.unshare(operation);
    } catch (error) {
      throw named(error, this.name);
    }
  }

  /** It is gone, whoever has attached to it. */
  loseShare(): void {
    this.#share?.lose();
  }

  explain(iova: IovaLike, length?: number, access?: DmaAccess): Explanation {
    return this.#domainToExplain('explain').explain(iova, length, access);
  }

  explainFaults(): ExplainedFault[] {
    const domain = this.#domainToExplain('explainFaults');
    const faults = this.#opened.faults?.() ?? [];
    return faults.map((fault) => ({ ...fault, explanation: domain.explain(fault.iova, 1, fault.access) }));
  }

  async explainFaultsAsync(options?: Parameters<Device['explainFaultsAsync']>[0]): Promise<ExplainedFault[]> {
    const { after = 0, timeoutMs = 1000, signal } = optionsOf(options, FAULT_OPTIONS, 'explainFaults');
    if (!(timeoutMs >= 0))
      throw invalid('explainFaults', `timeoutMs is not a time: ${String(timeoutMs)}`, { device: this.name });
    const end = now() + timeoutMs;
    for (;;) {
      mustGoOn(signal, 'explainFaults');
      const faults = this.explainFaults();
      const left = end - now();
      if (faults.length > after || left <= 0 || this.#opened.faults === undefined) return faults;
      // The signal is checked again on the next pass, at most FAULT_POLL_MS later.
      await delay(Math.min(FAULT_POLL_MS, left));
    }
  }

  /** Closes the device on its bus. */
  async close(): Promise<void> {
    await this.#opened.close();
  }

  #noIova({ table }: Domain, range: Range<Va>, isLive: boolean): DmaError {
    const [reason, hint] = !isLive
      ? [
          'the memory was freed',
          'freed memory is mapped for no device; its property live, or registered, tells whether it can be used',
        ]
      : table.iovaOf(range.start) < 0
        ? [
            'the memory is not mapped for the device',
            'map it with device.dmaMap(memory); heaps and blocks of eal.malloc are mapped already',
          ]
        : [
            'the memory is not mapped in one piece for the device',
            'allocate contiguous memory, or ask for the address of each page',
          ];
    return invalid('iovaOf', reason, { range, device: this.name, hint });
  }

  /** The program's own mappings for this device, last first. */
  #unmappable(): Mapping[] {
    if (this.lost !== undefined && this.binding === undefined) return [];
    const mappings = this.#mustHaveDomain('dmaUnmapAll').mappingsFor(this.name);
    return mappings.filter(({ keeper }) => keeper === undefined).reverse();
  }

  /** @throws DmaError while the device is being removed: mappings can then be undone but not made */
  #mustTakeMappings(operation: string): Domain {
    if (this.state === 'gone' || this.lost !== undefined) throw this.#hasNoDriver(operation);
    return this.#mustHaveDomain(operation);
  }

  /** The domain that explains addresses, also after the device is lost. */
  #domainToExplain(operation: string): Domain {
    return this.lost !== undefined && this.#lastDomain !== undefined
      ? this.#lastDomain
      : this.#mustHaveDomain(operation);
  }

  #mustHaveDomain(operation: string): Domain {
    const { binding } = this;
    if (binding === undefined) throw this.#hasNoDriver(operation);
    if (binding.domain !== undefined) return binding.domain;
    const reason = `neither its driver ${binding.driver.name} nor the bus ${this.bus.name} can map memory`;
    const hint = 'the driver or the bus must implement spaceOf';
    throw new DmaError({ code: 'ENOTSUP', operation, device: this.name, reason, hint });
  }

  #hasNoDriver(operation: string): DmaError {
    if (this.handedOver !== undefined) return this.handedOver.with({ operation, device: this.name });
    if (this.lost !== undefined) return lostDevice(operation, this.name, this.lost);
    if (this.stopped) return stopped(operation).with({ device: this.name });
    const reason = this.state === 'gone' ? 'the device was removed' : 'the device has no driver';
    return invalid(operation, reason, { device: this.name, hint: 'eal.probe(name) opens a device' });
  }
}

/** The hint of `use` for a value that is not a driver. */
function driverHint(binding: BoundDevice['binding']): string {
  return `pass a driver object, such as copyEngineDriver of anydma; the device's driver is ${binding?.driver.name ?? 'none'}`;
}

shortForm(BoundDevice, 'Device', ({ name, state, driver, domain, lost }) => ({
  name,
  state,
  driver: driver?.name,
  domain: domain?.name,
  lost: lost?.message,
}));
