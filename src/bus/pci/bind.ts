/**
 * Which kernel driver has a PCI function: handing it to vfio-pci, and back. By driver_override and drivers_probe
 * (Documentation/ABI/testing/sysfs-bus-pci), so that no other device is touched. What is done stays done when this process ends.
 */
import { DmaError, invalid, isDmaError, undoAll, withUndo } from '../../errors.js';
import type { KernelPort } from '../../platform/ports.js';
import { groupMembers } from '../../vfio/facts.js';
import { parsePciAddress } from './address.js';
import { glob } from './glob.js';
import { KernelModules } from './modules.js';
import { classKind } from './names.js';
import { routeThrough } from './routes.js';
import { isBridge, isVfioDriver, NO_IOMMU_MODE, PciSysfs, type PciFunction } from './sysfs.js';
import { loadVfio, nodesOf } from './usable.js';

/** Options of {@link PciBinder.bind}. */
export interface BindOptions {
  /** The driver that shall have them; `none` for no driver at all. Default `vfio-pci`. */
  readonly driver?: string;
  /** Take a network interface away even when a route leads through it. */
  readonly force?: boolean;
  /** Bind the other members of their IOMMU groups as well. */
  readonly wholeGroup?: boolean;
  /** Switch VFIO's no-IOMMU mode on when the machine has no IOMMU. It protects nothing and taints the kernel. */
  readonly noIommuMode?: boolean;
  /** Who shall own VFIO's device files, by number. What is left out stays as it is. */
  readonly owner?: { readonly user?: number; readonly group?: number };
}

/** What became of one function. */
export interface BindResult {
  readonly address: string;
  /** The driver before; `undefined` for none. */
  readonly from: string | undefined;
  /** The driver now; `undefined` for none. */
  readonly to: string | undefined;
  /** Why it does not have the driver that it should have; its old driver has it again, when that was possible. */
  readonly error: DmaError | undefined;
}

const DEFAULT_DRIVER = 'vfio-pci';
const NO_DRIVER = 'none';

/** Drivers that only hand a device to user space. */
const USER_SPACE_DRIVERS: readonly string[] = ['uio_pci_generic', 'igb_uio', 'pci-stub'];

/** Moves PCI functions from driver to driver. */
export class PciBinder {
  readonly #sysfs: PciSysfs;
  readonly #kernel: KernelPort;
  readonly #modules: KernelModules;

  constructor(kernel: KernelPort) {
    this.#kernel = kernel;
    this.#sysfs = new PciSysfs(kernel);
    this.#modules = new KernelModules(kernel);
  }

  /**
   * The functions that texts name: by address, with or without the domain; by a network interface; or by a shell-style
   * pattern of either, which leaves bridges out. Each is there once.
   *
   * @throws DmaError ENODEV for a text that names nothing that is there
   */
  resolve(texts: readonly string[]): PciFunction[] {
    const all = this.#sysfs.scan();
    const chosen = texts.flatMap((text) => {
      const address = parsePciAddress(text);
      const exact = all.filter((fn) => fn.address === address || fn.interfaces.includes(text));
      const found =
        exact.length > 0
          ? exact
          : all.filter((fn) => classKind(fn.ids.classCode) !== 'bridge' && matches(fn, glob(text)));
      if (found.length > 0) return found;
      const reason = `there is no PCI device "${text}"`;
      const hint = this.#sysfs.hasDriver(text)
        ? `that is a driver: anydma bind --driver ${text} DEVICE`
        : 'anydma devices lists what there is';
      throw new DmaError({ code: 'ENODEV', operation: 'bind', reason, hint });
    });
    return [...new Map(chosen.map((fn) => [fn.address, fn])).values()];
  }

  /**
   * Gives functions to a driver, one after the other; a function that has it already is left as it is. What can not be
   * done for one does not keep it from being done for the others.
   *
   * @throws DmaError, before anything was changed: EINVAL for a driver that is no name of one; ENOTSUP when there is no such
   *   driver; ENODEV when it is VFIO's, and the machine has no IOMMU
   */
  bind(functions: readonly PciFunction[], options: BindOptions = {}): BindResult[] {
    const { driver = DEFAULT_DRIVER, force = false, wholeGroup = false, owner } = options;
    this.#checkDriver(driver);
    if (isVfioDriver(driver)) this.#checkIommu(options.noIommuMode === true);
    return (wholeGroup ? this.#withGroups(functions) : functions).map((fn) =>
      this.#each(fn, () => {
        if (driver === NO_DRIVER) this.#take(fn, force);
        else this.#give(fn, driver, force);
        if (owner !== undefined && isVfioDriver(driver)) this.#own(fn.address, owner);
      }),
    );
  }

  /**
   * Gives functions back to whichever of the kernel's own drivers wants them. A function that such a driver has is left as
   * it is. That no driver wants it is no error.
   */
  unbind(functions: readonly PciFunction[], options: Pick<BindOptions, 'force'> = {}): BindResult[] {
    return functions.map((fn) =>
      this.#each(fn, () => {
        const { address, driver } = fn;
        if (driver !== undefined && !isVfioDriver(driver) && !USER_SPACE_DRIVERS.includes(driver)) return;
        this.#take(fn, options.force === true);
        this.#probe(address);
      }),
    );
  }

  /** Modules that could drive a function, for who wonders why no driver took it. */
  modulesFor({ modalias }: PciFunction): string[] {
    return this.#modules.forModalias(modalias);
  }

  #each(fn: PciFunction, work: () => void): BindResult {
    const { address, driver: from } = fn;
    const result = (error?: DmaError): BindResult => ({ address, from, to: this.#sysfs.driver(address), error });
    try {
      work();
      return result();
    } catch (error) {
      if (!isDmaError(error)) throw error;
      return result(error.with({ operation: 'bind', device: `pci:${address}`, hint: error.hint ?? hintFor(error) }));
    }
  }

  #give(fn: PciFunction, driver: string, force: boolean): void {
    const { address, driver: old } = fn;
    if (old === driver) return;
    if (isBridge(fn) && isVfioDriver(driver)) throw refused(fn, 'ENOTSUP', 'it is a bridge, which VFIO does not take');
    this.#mayTake(fn, force);
    const undo: (() => void)[] = [];
    try {
      undo.push(() => this.#override(address, undefined));
      this.#override(address, driver);
      if (old !== undefined) {
        undo.push(() => this.#restore(address, old));
        this.#unbindFrom(old, address);
      }
      this.#probe(address);
      // The kernel does not tell why a driver that it tried did not take the device; binding by name does.
      if (this.#sysfs.driver(address) !== driver) this.#bindTo(driver, address);
    } catch (error) {
      throw withUndo(error, 'bind', undoAll(undo));
    }
    this.#override(address, undefined);
  }

  /** Leaves it without a driver. */
  #take(fn: PciFunction, force: boolean): void {
    const { address, driver } = fn;
    if (driver !== undefined) {
      this.#mayTake(fn, force);
      this.#unbindFrom(driver, address);
    }
    this.#override(address, undefined);
  }

  /** @throws DmaError EBUSY for an interface that the machine's network needs */
  #mayTake(fn: PciFunction, force: boolean): void {
    if (force) return;
    for (const name of fn.interfaces) {
      const route = routeThrough(this.#kernel, name);
      if (route === undefined) continue;
      const reason = `its interface ${name} carries ${route}`;
      throw refused(fn, 'EBUSY', reason, 'take the route away first, or take the interface all the same with --force');
    }
  }

  #checkDriver(driver: string): void {
    if (driver === NO_DRIVER) return;
    if (parsePciAddress(driver) !== undefined || this.#kernel.list(`/sys/class/net/${driver}`).length > 0)
      throw invalid('bind', `"${driver}" is a device, not a driver`, { hint: 'anydma bind --driver vfio-pci DEVICE' });
    if (!/^[\w-]+$/.test(driver)) throw invalid('bind', `"${driver}" is no name of a driver`);
    if (this.#sysfs.hasDriver(driver)) return;
    const hint = isVfioDriver(driver) ? loadVfio(this.#modules) : `modprobe ${driver}`;
    throw new DmaError({ code: 'ENOTSUP', operation: 'bind', reason: `the driver ${driver} is not loaded`, hint });
  }

  #checkIommu(switchOn: boolean): void {
    if (this.#sysfs.hasIommu()) return;
    const mode = this.#sysfs.noIommuMode();
    if (mode === true) return;
    if (switchOn && mode === false) return this.#kernel.writeText(NO_IOMMU_MODE, '1');
    throw new DmaError({
      code: 'ENODEV',
      operation: 'bind',
      reason: 'the machine has no IOMMU, or it is off',
      hint: switchOn
        ? 'this kernel was built without no-IOMMU mode, too (CONFIG_VFIO_NOIOMMU)'
        : 'switch it on in the firmware and on the kernel command line (intel_iommu=on); or, where nothing needs to be ' +
          'protected from the device: --noiommu-mode',
    });
  }

  #withGroups(functions: readonly PciFunction[]): PciFunction[] {
    const names = functions.flatMap(({ address, group }) => [
      address,
      ...(group === undefined ? [] : groupMembers(this.#kernel, group).map(({ name }) => name)),
    ]);
    const chosen = [...new Set(names)].flatMap((name) => this.#sysfs.read(name) ?? []);
    return chosen.filter((fn) => !isBridge(fn) || functions.some(({ address }) => address === fn.address));
  }

  /** Gives it back to the driver that it was taken from. */
  #restore(address: string, driver: string): void {
    const now = this.#sysfs.driver(address);
    if (now === driver) return;
    if (now !== undefined) this.#unbindFrom(now, address);
    this.#override(address, undefined);
    this.#bindTo(driver, address);
  }

  #override(address: string, driver: string | undefined): void {
    // A line without anything on it takes the override away.
    this.#kernel.writeText(`${this.#sysfs.directory(address)}/driver_override`, `${driver ?? ''}\n`);
  }

  #probe(address: string): void {
    this.#kernel.writeText('/sys/bus/pci/drivers_probe', address);
  }

  #bindTo(driver: string, address: string): void {
    this.#kernel.writeText(`/sys/bus/pci/drivers/${driver}/bind`, address);
  }

  #unbindFrom(driver: string, address: string): void {
    this.#kernel.writeText(`/sys/bus/pci/drivers/${driver}/unbind`, address);
  }

  /** The device files of its own: those that devices share stay whose they are. */
  #own(address: string, { user, group }: NonNullable<BindOptions['owner']>): void {
    const fn = this.#sysfs.read(address);
    if (fn === undefined) return;
    for (const [, [, node]] of nodesOf(this.#sysfs, fn))
      if (this.#kernel.mayOpen(node) !== 'no-such-file') this.#kernel.changeOwner(node, user ?? -1, group ?? -1);
  }
}

function matches({ address, interfaces }: PciFunction, pattern: RegExp): boolean {
  return [address, address.replace(/^0000:/, ''), ...interfaces].some((name) => pattern.test(name));
}

function refused(fn: PciFunction, code: 'EBUSY' | 'ENOTSUP', reason: string, hint?: string): DmaError {
  return new DmaError({ code, operation: 'bind', device: `pci:${fn.address}`, reason, hint });
}

function hintFor({ code }: DmaError): string | undefined {
  if (code === 'EACCES' || code === 'EPERM') return 'changing drivers takes root';
  if (code === 'EBUSY') return 'is SR-IOV switched on for it? Then write 0 into its sriov_numvfs first';
  return undefined;
}
