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

/** The address space that a software device is put into: the side of the program, and the side of the device. */
export interface VdevSpace {
  readonly space: AddressSpace;
  readonly dma: DeviceDma;
}

/** Its keys, for help pages. */
export const VDEV_KEYS =
  `vdev:NAME takes iommu=emulated|identity: an IOMMU of its own, or none (emulated). ` +
  `vdev:nvmeN also takes file=PATH, size=SIZE and blocksize=512|4096.`;

/** Keys that only devices of one kind have. */
const KIND_KEYS: Readonly<Record<string, readonly string[]>> = {
  edu: ['dma-mask'],
  nvme: ['file', 'size', 'blocksize'],
};

/** What the bus is made of. */
export interface VdevBusOptions {
  /** The model of devices whose names begin with `kind` (`edu` for `edu0`); `undefined` for unknown kinds. */
  readonly model: (kind: string, args: ReadonlyMap<string, string>) => ModelFactory | undefined;
  /** Makes the address space of a device. */
  readonly space: (args: ReadonlyMap<string, string>) => VdevSpace;
  /** Asked before a kind is added. */
  readonly gate?: Gate;
}

/** The bus `vdev`. Names are letters and dashes, which say the kind, and then a number. */
export class VdevBus implements Bus {
  readonly name = 'vdev';
  readonly keys = ['iommu', ...Object.values(KIND_KEYS).flat()];
  readonly #options: VdevBusOptions;
  readonly #kinds = new Map<string, ModelFactory>();
  readonly #spaces = new Map<string, VdevSpace>();

  /** @internal */
  constructor(options: VdevBusOptions) {
    this.#options = options;
  }

  /**
   * Adds a kind of device, made by `factory`; devices of this kind are called `<kind><number>`.
   *
   * @throws DmaError EINVAL for a kind that is not lower-case letters and dashes, EEXIST for one that there is
   */
  define(kind: string, factory: ModelFactory): void {
    const operation = 'vdev.define';
    this.#options.gate?.(operation);
    mustBeString(kind, 'a kind of device', operation);
    mustBeFunction(factory, 'what makes a device', operation);
    if (kindOf(`${kind}0`) !== kind)
      throw invalid(operation, `${show(kind)} is no kind of device: it is lower-case letters and dashes`, {
        hint: 'such as "my-nic", whose devices are vdev:my-nic0, vdev:my-nic1 and so on',
      });
    if (this.#has(kind)) {
      const reason = `there is a kind of vdev called ${kind}`;
      throw new DmaError({ code: 'EEXIST', operation, reason, hint: `there are: ${this.#allKinds().join(', ')}` });
    }
    this.#kinds.set(kind, factory);
  }

  /** Those of the program and those that are built in, each with a number. */
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
    for (const [owner, keys] of Object.entries(KIND_KEYS)) {
      const key = keys.find((each) => args.has(each));
      if (owner !== kind && key !== undefined)
        throw invalid('open', `vdev devices of the kind ${kind} have no key ${key}`, {
          hint: `those of the kind ${owner} have`,
        });
    }
    const factory = this.#kinds.get(kind) ?? this.#options.model(kind, args);
    if (factory === undefined)
      throw new DmaError({ code: 'ENODEV', operation: 'open', reason: `there is no kind of vdev called ${kind}` });
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

  /** Each has one of its own. */
  spaceOf({ name, busName }: Device): AddressSpace {
    const space = this.#spaces.get(busName)?.space;
    if (space !== undefined) return space;
    throw closedDevice(name);
  }

  /** Their IOMMU is software: every address will do, and few devices could reach physical ones. */
  iovaWish(): 'va' {
    return 'va';
  }

  #allKinds(): string[] {
    return [...new Set<string>([...DEVICE_NAMES, ...this.#kinds.keys()])];
  }

  #has(kind: string): boolean {
    return this.#kinds.has(kind) || this.#options.model(kind, new Map()) !== undefined;
  }
}

/** `dma` that also reports why an access failed, unless nothing was mapped: models have error codes of their own. */
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
    read: (iova, into) => told(() => dma.read(iova, into)),
    write: (iova, from) => told(() => dma.write(iova, from)),
  };
}

shortForm(VdevBus, 'VdevBus', ({ name }) => ({ name }));

function kindOf(name: string): string | undefined {
  return /^([a-z][a-z-]*)\d+$/.exec(name)?.[1];
}
