/** For tests of the bus model: a bus and drivers that follow the test's script and log what was done to them. */
import type { AddressSpace, Constraints, Segment } from '../../../src/dma/address-space.js';
import { DmaError, type ErrorCode } from '../../../src/errors.js';
import { AreaIndex } from '../../../src/memory/area-index.js';
import { External, type ExternalMemory } from '../../../src/memory/external.js';
import { portablePlatform } from '../../../src/platform/portable.js';
import { Range } from '../../../src/ranges.js';
import type { Iova } from '../../../src/units.js';
import type { Bus, Device, Driver, IdMatch, OpenedDevice, ProbeContext } from '../../../src/bus/model.js';
import { Registry, type RegistryOptions } from '../../../src/bus/registry.js';

/** A log of the steps, in order, and the steps that shall fail. */
export class Script {
  /** `open a`, `map a`, `unmap a`, `close a` ... */
  readonly log: string[] = [];
  /** Steps, named as in the log, that throw a DmaError of this code while they are in this map. */
  readonly failing = new Map<string, ErrorCode>();
  /** Functions that run in the middle of a step. */
  readonly during = new Map<string, () => void>();

  /** Notes a step. @throws DmaError when it shall fail */
  step(what: string): void {
    this.log.push(what);
    this.during.get(what)?.();
    const code = this.failing.get(what);
    if (code !== undefined) throw new DmaError({ code, operation: what, reason: 'made to fail by the test' });
  }

  /** The steps logged since the last call. */
  take(): string[] {
    return this.log.splice(0);
  }
}

/** Constraints of an address space without any. */
export const FREE: Constraints = {
  granule: 4096,
  windows: [new Range(0 as Iova, 2 ** 48)],
  entryLimit: Infinity,
  iova: 'free',
  partialUnmap: true,
  pins: false,
};

/** Address spaces that map nothing but note it as `<prefix>map a`. */
export interface FakeSpaces {
  readonly mapped: Map<Iova, Segment>;
  readonly spaceOf: (device: Device) => AddressSpace;
}

/** Address spaces by key: devices for which `keyOf` returns the same key share one. */
export function fakeSpaces(
  script: Script,
  {
    prefix = '',
    keyOf = (device: Device) => device.busName,
    constraints = FREE,
  }: {
    readonly prefix?: string;
    readonly keyOf?: (device: Device) => string;
    readonly constraints?: Constraints;
  } = {},
): FakeSpaces {
  const mapped = new Map<Iova, Segment>();
  const spaces = new Map<string, AddressSpace>();
  const made = (key: string): AddressSpace => ({
    kind: 'fake',
    constraints,
    map: (segment) => {
      script.step(`${prefix}map ${key}`);
      mapped.set(segment.iova, segment);
      return undefined;
    },
    unmap: (segment) => {
      script.step(`${prefix}unmap ${key}`);
      mapped.delete(segment.iova);
      return segment.length;
    },
    close: () => {
      spaces.delete(key);
      script.step(`${prefix}closeDomain ${key}`);
    },
  });
  return {
    mapped,
    spaceOf: (device) => {
      script.step(`${prefix}domain ${device.busName}`);
      const key = keyOf(device);
      const space = spaces.get(key) ?? made(key);
      spaces.set(key, space);
      return space;
    },
  };
}

/** A bus whose devices exist while the test says so. */
export class FakeBus implements Bus {
  readonly name: string;
  readonly spaceOf?: (device: Device) => AddressSpace;
  /** Ids of devices by name; others have none. */
  readonly ids = new Map<string, Required<IdMatch>>();
  match?: (opened: OpenedDevice, driver: Driver) => boolean;
  scan?: () => Promise<readonly string[]>;
  readonly #script: Script;
  readonly #lost = new Map<string, (error: DmaError) => void>();

  constructor(script: Script, options: { readonly name?: string; readonly spaceOf?: Bus['spaceOf'] } = {}) {
    this.name = options.name ?? 'fake';
    if (options.spaceOf !== undefined) this.spaceOf = options.spaceOf;
    this.#script = script;
  }

  /** Every name of letters and digits; `x` is not one, so that tests have a bad one. */
  parse(name: string): string | undefined {
    return /^[a-z]\w*$/.test(name) && name !== 'x' ? name : undefined;
  }

  async open(name: string): Promise<OpenedDevice> {
    this.#script.step(`open ${name}`);
    return {
      ids: this.ids.get(name),
      access: undefined,
      onLost: (lost) => void this.#lost.set(name, lost),
      close: async () => this.#script.step(`close ${name}`),
    };
  }

  /** The device is gone. */
  lose(name: string): void {
    this.#lost.get(name)?.(new DmaError({ code: 'ECONNRESET', operation: 'fake', reason: `${name} was pulled` }));
  }
}

/** A driver for `fake` devices that notes `probe`, and `remove`, with its name and the device's. */
export function fakeDriver(
  script: Script,
  name: string,
  more: Partial<Omit<Driver, 'probe'>> & {
    readonly probe?: (device: Device, context: ProbeContext) => unknown;
  } = {},
): Driver {
  return {
    buses: ['fake'],
    ...more,
    name,
    probe: (device, context) => {
      script.step(`${name}.probe ${device.busName}`);
      return more.probe?.(device, context) ?? `${name} of ${device.busName}`;
    },
    remove: (device) => script.step(`${name}.remove ${device.busName}`),
  };
}

/** A registry on a platform without system calls, and what it works with. */
export class TestRegistry extends Registry {
  readonly script: Script;
  readonly external: External;
  /** `probed fake:a`, `lost fake:a` ... */
  readonly events: string[];

  constructor(script = new Script(), options: Partial<RegistryOptions> = {}) {
    const platform = portablePlatform('a test');
    const areas = new AreaIndex();
    const external = new External(platform, areas);
    const events: string[] = [];
    super({
      areas,
      limits: platform.limits,
      context: { external },
      holdBackMs: 0,
      changed: (change, device) => void events.push(`${change} ${device.name}`),
      ...options,
    });
    this.script = script;
    this.external = external;
    this.events = events;
  }
}

/** What a test of the bus model works with. */
export interface Bench {
  readonly registry: TestRegistry;
  readonly script: Script;
  readonly bus: FakeBus;
  readonly spaces: FakeSpaces;
  readonly memory: ExternalMemory;
}

/** A registry with one bus and these drivers; all devices share a domain if `keyOf` says so. */
export function bench(
  options: {
    readonly drivers?: (script: Script) => readonly Driver[];
    readonly keyOf?: (device: Device) => string;
    readonly constraints?: Constraints;
    readonly mappable?: boolean;
  } = {},
): Bench {
  const script = new Script();
  const registry = new TestRegistry(script);
  const { keyOf, constraints } = options;
  const spaces = fakeSpaces(script, { keyOf, constraints });
  const bus = new FakeBus(script, { spaceOf: options.mappable === false ? undefined : spaces.spaceOf });
  registry.registerBus(bus);
  for (const driver of options.drivers?.(script) ?? [fakeDriver(script, 'one')]) registry.registerDriver(driver);
  return { registry, script, bus, spaces, memory: registry.external.allocate(4 * 4096) };
}

/** A promise that a test resolves. */
export function gate(): { readonly opened: Promise<void>; open: () => void } {
  let open = (): void => undefined;
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open: () => open() };
}

/** A key that puts all devices into one domain. */
export const sharedKey = (): string => 'shared';
