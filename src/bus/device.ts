/** The devices of a registry: where a call of a device finds its domain. */
import { isA, mustBeObject, optionsOf, reading, stopped } from '../check.js';
import { DmaError, invalid, throwFirst, undoAll } from '../errors.js';
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
import { MapOnMiss } from './map-on-miss.js';
import { dmaMapPool, dmaMapPoolAsync, type PoolMapping } from './map-pool.js';
import type { AreaIndex } from '../memory/area-index.js';
import type { Bus, Device, Driver, ExplainedFault, IdMatch, OpenedDevice } from './model.js';
import { shortForm } from '../short-form.js';
import { delay, now } from '../timers.js';
import type { MemoryPart } from '../memory/part.js';

/** What has taken a device. */
interface Binding {
  readonly driver: Driver;
  readonly domain: Domain | undefined;
  instance?: unknown;
}

const MISS_OPTIONS = { unit: ['area', 'pages'] } as const;

const FAULT_OPTIONS = { after: 'number', timeoutMs: 'number', signal: 'signal' } as const;

/** How often it is looked whether a fault was reported; nobody tells. */
const FAULT_POLL_MS = 20;

/** A device that a registry has opened. See {@link Device} for what its members do. */
export class BoundDevice implements Device {
  readonly name: string;
  readonly bus: Bus;
  readonly busName: string;
  readonly args: ReadonlyMap<string, string>;
  // What the registry changes.
  state: Device['state'] = 'opening';
  lost: DmaError | undefined;
  /** Was it taken away because all were? */
  stopped = false;
  readonly #opened: OpenedDevice;
  readonly #areas: AreaIndex;
  #binding: Binding | undefined;
  /** The domain that it was in last, which goes on explaining once the device is lost. */
  #lastDomain: Domain | undefined;

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
    // Its driver has it until it has let go.
    if (this.lost !== undefined && this.binding === undefined) throw lostDevice('access', this.name, this.lost);
    const { access } = this.#opened;
    if (access !== undefined) return access;
    const hint = 'device.use(driver) gives what its driver made of it';
    throw new DmaError({
      code: 'ENOTSUP',
      operation: 'access',
      device: this.name,
      reason: 'it has no registers',
      hint,
    });
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
      throw invalid('use', `drivers are given as an object, not as ${show(driver)}`, {
        device: this.name,
        hint: driverHint(binding),
      });
    if (this.lost !== undefined) throw lostDevice('use', this.name, this.lost);
    const name: unknown = reading('use', 'the driver', () => driver.name);
    if (typeof name !== 'string')
      throw invalid('use', 'this is no driver: it has no name', { device: this.name, hint: driverHint(binding) });
    const named = show(name).slice(1, -1);
    const has = binding === undefined ? 'has no driver' : `is driven by ${binding.driver.name}, not by ${named}`;
    if (this.state === 'gone') throw this.#hasNoDriver('use');
    const reason = this.state === 'probed' ? has : 'is still being probed';
    const hint =
      this.state !== 'probed'
        ? 'await what eal.probe returned'
        : binding === undefined
          ? 'eal.remove(device), and probe it again with a driver for it registered'
          : `device.driver is the one that it has; "bus=${this.bus.name},name=${this.busName}/driver=${named}" probes it with another`;
    throw invalid('use', `the device ${reason}`, { device: this.name, hint });
  }

  dmaMap(target: MemoryPart, options?: MapOptions): Mapping {
    return this.#mustTakeMappings('dmaMap').mapFor(this.name, target, options);
  }

  async dmaMapAsync(target: MemoryPart, options?: MapAsyncOptions): Promise<Mapping> {
    return this.#mustTakeMappings('dmaMapAsync').mapForAsync(this.name, target, options);
  }

  dmaUnmap(target: Mapping | (MemoryPart & { readonly iova?: IovaLike })): void {
    // What was mapped went with it, so that there is nothing left to undo.
    if (this.lost !== undefined && this.binding === undefined) return;
    const domain = this.#mustHaveDomain('dmaUnmap');
    if (!isA(target, Mapping)) return domain.unmapFor(this.name, target);
    if (target.device !== this.name)
      throw invalid('dmaUnmap', `this is a mapping of ${target.device}`, {
        range: target.range,
        device: this.name,
        hint: 'mapping.unmap() unmaps it where it is',
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
      // It may have been unmapped in the turns before.
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
      throw invalid('iovaOf', 'the memory can not be read', { device: this.name, cause });
    }
    if (isLive && isAddress(va) && isAddress(length) && length > 0) {
      const iova = domain.table.iovaOfRange(va, length);
      if (iova >= 0) return iova as Iova;
    }
    throw this.#noIova(domain, new Range<Va>(va as Va, length, 'iovaOf'), isLive);
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
      throw invalid('explainFaults', `timeoutMs is no time: ${String(timeoutMs)}`, { device: this.name });
    const end = now() + timeoutMs;
    for (;;) {
      mustGoOn(signal, 'explainFaults');
      const faults = this.explainFaults();
      const left = end - now();
      if (faults.length > after || left <= 0 || this.#opened.faults === undefined) return faults;
      // A look at the log later tells of an abort soon enough.
      await delay(Math.min(FAULT_POLL_MS, left));
    }
  }

  /** Closes it on its bus. */
  async close(): Promise<void> {
    await this.#opened.close();
  }

  #noIova({ table }: Domain, range: Range<Va>, isLive: boolean): DmaError {
    const [reason, hint] = !isLive
      ? ['it was freed', 'what is freed is mapped for no device: live, or registered, tells whether it can be used']
      : table.iovaOf(range.start) < 0
        ? [
            'it is not mapped for the device',
            'device.dmaMap(memory) maps it; heaps and blocks of eal.malloc are mapped',
          ]
        : [
            'not all of it is mapped for the device in one piece',
            'ask for memory that is contiguous, or for the address of each page',
          ];
    return invalid('iovaOf', reason, { range, device: this.name, hint });
  }

  /** What the program has mapped for it, last first. */
  #unmappable(): Mapping[] {
    if (this.lost !== undefined && this.binding === undefined) return [];
    const mappings = this.#mustHaveDomain('dmaUnmapAll').mappingsFor(this.name);
    return mappings.filter(({ keeper }) => keeper === undefined).reverse();
  }

  /** While it is taken away, mappings can be undone but not made. */
  #mustTakeMappings(operation: string): Domain {
    if (this.state === 'gone' || this.lost !== undefined) throw this.#hasNoDriver(operation);
    return this.#mustHaveDomain(operation);
  }

  /** After a loss too, for the post-mortem. */
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
    const hint = 'a driver or a bus with spaceOf can';
    throw new DmaError({ code: 'ENOTSUP', operation, device: this.name, reason, hint });
  }

  #hasNoDriver(operation: string): DmaError {
    if (this.lost !== undefined) return lostDevice(operation, this.name, this.lost);
    if (this.stopped) return stopped(operation).with({ device: this.name });
    const reason = this.state === 'gone' ? 'the device is gone' : 'no driver has the device';
    return invalid(operation, reason, { device: this.name, hint: 'eal.probe(name) opens a device' });
  }
}

/** What to give `use`. */
function driverHint(binding: BoundDevice['binding']): string {
  return `such as device.use(copyEngineDriver), which anydma exports; it has ${binding?.driver.name ?? 'none'} now`;
}

shortForm(BoundDevice, 'Device', ({ name, state, driver, domain, lost }) => ({
  name,
  state,
  driver: driver?.name,
  domain: domain?.name,
  lost: lost?.message,
}));
