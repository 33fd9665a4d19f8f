/** The bus of software devices in this process: `vdev:edu0`, `vdev:copy1,iommu=identity`. */
import type { AddressSpace } from '../../dma/address-space.js';
import { mustBeFunction, mustBeString, type Gate } from '../../check.js';
import { DmaError, invalid, isDmaError } from '../../errors.js';
import { DEVICE_NAMES } from '../../vfio-user/devices/catalog.js';
import type { DeviceDma, ModelFactory } from '../../vfio-user/devices/model.js';
import { closedDevice } from '../closed-device.js';
import type { Bus, Device, OpenedDevice } from '../model.js';
import { ModelAccess } from './model-access.js';
import { shortForm } from '../../short-form.js';
import { show } from '../../show.js';
import { STAYS } from '../../stays.js';

/** The address space of a software device: the program's side, and the device's side. */
export interface VdevSpace {
  readonly space: AddressSpace;
  readonly dma: DeviceDma;
}

/** Explains its keys, for help pages. */
export const VDEV_KEYS =
  `vdev:NAME takes iommu=emulated|identity: its own emulated IOMMU, or none (default: emulated). ` +
  `vdev:nvmeN also takes file=PATH, size=SIZE, blocksize=512|4096 and dma-mask=BITS.`;

/** Keys that only devices of one kind have. */
const KIND_KEYS: Readonly<Record<string, readonly string[]>> = {
  edu: ['dma-mask'],
  nvme: ['file', 'size', 'blocksize', 'dma-mask'],
  null: ['size'],
  pcap: ['rx', 'tx', 'link'],
  ring: ['size', 'queues'],
  tap: ['iface', 'mtu', 'queues'],
};

/** Kinds without registers: their driver is the device, and gets the kind as the handle. */
const PLAIN_KINDS: readonly string[] = ['null', 'pcap', 'ring', 'tap'];

/** What the bus needs. */
export interface VdevBusOptions {
  /** The built-in model of a kind (`edu` for the device `edu0`); `undefined` for unknown kinds. */
  readonly model: (kind: string, args: ReadonlyMap<string, string>) => ModelFactory | undefined;
  /** Creates the address space of a device. */
  readonly space: (args: ReadonlyMap<string, string>) => VdevSpace;
  /** Called before a kind is added. */
  readonly gate?: Gate;
}

/** The bus `vdev`. A name is a kind (letters and dashes) and a number. */
export class VdevBus implements Bus {
  /** @internal */
  readonly stays = STAYS;
  readonly name = 'vdev';
  readonly keys = [...new Set(['iommu', ...Object.values(KIND_KEYS).flat()])];
  readonly #options: VdevBusOptions;
  readonly #kinds = new Map<string, ModelFactory>();
  readonly #spaces = new Map<string, VdevSpace>();

  /** @internal */
  constructor(options: VdevBusOptions) {
    this.#options = options;
  }

  /**
   * Adds a kind of device: `factory` creates its models, and its devices are called `<kind><number>`.
   *
   * @throws DmaError EINVAL for a kind that is not lower-case letters and dashes, EEXIST for a kind that exists already
   */
  define(kind: string, factory: ModelFactory): void {
    const operation = 'vdev.define';
    this.#options.gate?.(operation);
    mustBeString(kind, 'a kind of device', operation);
    mustBeFunction(factory, 'the factory of a kind of device', operation);
    if (kindOf(`${kind}0`) !== kind)
      throw invalid(operation, `${show(kind)} can not be a kind of device: use lower-case letters and dashes`, {
        hint: 'such as "my-nic", whose devices are vdev:my-nic0, vdev:my-nic1 and so on',
      });
    if (this.#has(kind)) {
      const reason = `a vdev kind ${kind} exists already`;
      throw new DmaError({ code: 'EEXIST', operation, reason, hint: `kinds: ${this.#allKinds().join(', ')}` });
    }
    this.#kinds.set(kind, factory);
  }

  /** All kinds, each with a number. */
  get naming(): string {
    const kinds = this.#allKinds().map((kind) => `${kind}0`);
    return `by its kind and a number: ${kinds.join(', ')}`;
  }

  parse(name: string): string | undefined {
    const kind = kindOf(name);
    if (kind === undefined) return undefined;
    return this.#has(kind) ? name : undefined;
  }

  async open(name: string, args: ReadonlyMap<string, string>): Promise<OpenedDevice> {
    const kind = kindOf(name) ?? name;
    for (const key of args.keys()) {
      const owners = Object.keys(KIND_KEYS).filter((owner) => KIND_KEYS[owner]?.includes(key));
      if (owners.length > 0 && !owners.includes(kind))
        throw invalid('open', `vdev devices of the kind ${kind} have no key ${key}`, {
          hint:
            owners.length === 1 ? `only the kind ${owners[0]} has it` : `only the kinds ${owners.join(', ')} have it`,
        });
    }
    if (!this.#kinds.has(kind) && PLAIN_KINDS.includes(kind)) return this.#openPlain(name, kind, args);
    const factory = this.#kinds.get(kind) ?? this.#options.model(kind, args);
    if (factory === undefined)
      throw new DmaError({ code: 'ENODEV', operation: 'open', reason: `there is no vdev kind ${kind}` });
    const space = this.#options.space(args);
    let failed: (error: DmaError) => void = () => undefined;
    const access = new ModelAccess(
      factory,
      telling(space.dma, (error) => failed(error)),
    );
    this.#spaces.set(name, space);
    const { vendor, device, subsystemVendor, subsystem, classCode } = access.model.identity;
    return {
      ids: { vendor, device, subsystemVendor, subsystem, classCode },
      access,
      onError: (tell) => (failed = tell),
      onLost: () => undefined,
      close: () => {
        access.close();
        this.#spaces.delete(name);
      },
    };
  }

  #openPlain(name: string, kind: string, args: ReadonlyMap<string, string>): OpenedDevice {
    this.#spaces.set(name, this.#options.space(args));
    return {
      ids: undefined,
      access: undefined,
      handle: { kind },
      onLost: () => undefined,
      close: () => void this.#spaces.delete(name),
    };
  }

  /** Every device has its own address space. */
  spaceOf({ name, busName }: Device): AddressSpace {
    const space = this.#spaces.get(busName)?.space;
    if (space !== undefined) return space;
    throw closedDevice(name);
  }

  /** Their IOMMU is software and supports every address; few devices could use physical addresses. */
  iovaWish(): 'va' {
    return 'va';
  }

  #allKinds(): string[] {
    return [...new Set<string>([...DEVICE_NAMES, ...PLAIN_KINDS, ...this.#kinds.keys()])];
  }

  #has(kind: string): boolean {
    return this.#kinds.has(kind) || PLAIN_KINDS.includes(kind) || this.#options.model(kind, new Map()) !== undefined;
  }
}

/**
 * Like `dma`, but also reports why an access failed. EFAULT and EACCES are left to the models, which have their own
 * error codes.
 */
function telling(dma: DeviceDma, failed: (error: DmaError) => void): DeviceDma {
  const told = <T>(access: () => T): T => {
    try {
      return access();
    } catch (error) {
      if (isDmaError(error) && error.code !== 'EFAULT' && error.code !== 'EACCES') failed(error);
      throw error;
    }
  };
  return {
    direct: (iova, length, access) => told(() => dma.direct(iova, length, access)),
    address: (iova, length, access) => told(() => dma.address?.(iova, length, access) ?? -1),
    read: (iova, into) => told(() => dma.read(iova, into)),
    write: (iova, from) => told(() => dma.write(iova, from)),
  };
}

shortForm(VdevBus, 'VdevBus', ({ name }) => ({ name }));

function kindOf(name: string): string | undefined {
  return /^([a-z][a-z-]*)\d+$/.exec(name)?.[1];
}
