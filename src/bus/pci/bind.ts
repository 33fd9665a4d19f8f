/**
 * Changes which kernel driver a PCI function is bound to: to vfio-pci, and back. Uses driver_override and drivers_probe
 * (Documentation/ABI/testing/sysfs-bus-pci), so that no other device is affected. The change outlives this process.
 */
import { DmaError, invalid, isDmaError, undoAll, withUndo, type ErrorCode } from '../../errors.js';
import type { KernelPort } from '../../platform/ports.js';
import { groupMembers, NO_IOMMU_MODE, noIommuMode } from '../../vfio/facts.js';
import { parsePciAddress } from './address.js';
import { glob } from './glob.js';
import { KernelModules } from './modules.js';
import { classKind } from './names.js';
import { isBridge, isVfioDriver, PciSysfs, type PciFunction } from './sysfs.js';
import { loadVfio, nodesOf } from './usable.js';
import { MachineUses, usesText, usesTodo, type FunctionUses, type Unasked, type Use } from './uses.js';

/** Options of {@link PciBinder.bind}. */
export interface BindOptions {
  /** The driver to bind the functions to; `none` for no driver. Default `vfio-pci`. */
  readonly driver?: string;
  /** Take a function away even if it is in use, or if that can not be found out. */
  readonly force?: boolean;
  /** Also bind the other members of their IOMMU groups. */
  readonly wholeGroup?: boolean;
  /** Enable VFIO's no-IOMMU mode if the machine has no IOMMU. It gives no protection and taints the kernel. */
  readonly noIommuMode?: boolean;
  /** User and group (by number) that shall own VFIO's device files. A part that is left out stays unchanged. */
  readonly owner?: { readonly user?: number; readonly group?: number };
}

/** The planned action for one function. */
export interface BindPlan {
  readonly address: string;
  /** The ids of the device when the plan was made. */
  readonly ids: PciFunction['ids'];
  /** The current driver; `undefined` for none. */
  readonly from: string | undefined;
  /**
   * `bind`: bind it to `to`; `take`: leave it without a driver; `release`: let the kernel choose one of its own
   * drivers; `leave`: do nothing, because it has the right driver already.
   */
  readonly action: 'bind' | 'take' | 'release' | 'leave';
  /** The driver that it would be bound to. */
  readonly to: string | undefined;
  /** The current uses of the function, which would end. */
  readonly uses: readonly Use[];
  /** Questions about its uses that could not be answered. */
  readonly unknown: readonly Unasked[];
  /** Why nothing would be done. */
  readonly error: DmaError | undefined;
}

/** The result for one function. */
export interface BindResult {
  readonly address: string;
  /** The driver before; `undefined` for none. */
  readonly from: string | undefined;
  /** The driver now; `undefined` for none. */
  readonly to: string | undefined;
  /** Why it does not have the requested driver. Its old driver was bound again if possible. */
  readonly error: DmaError | undefined;
}

const DEFAULT_DRIVER = 'vfio-pci';
const NO_DRIVER = 'none';

/** No uses, and no open questions. */
const UNUSED: FunctionUses = { uses: [], unknown: [] };

/** Drivers whose only purpose is to give a device to user space. */
const USER_SPACE_DRIVERS: readonly string[] = ['uio_pci_generic', 'igb_uio', 'pci-stub'];

/** Binds PCI functions to other drivers. */
export class PciBinder {
  readonly #sysfs: PciSysfs;
  readonly #kernel: KernelPort;
  readonly #modules: KernelModules;
  readonly #operation: 'bind' | 'unbind';

  /** @param operation the operation that errors name */
  constructor(kernel: KernelPort, operation: 'bind' | 'unbind' = 'bind') {
    this.#operation = operation;
    this.#kernel = kernel;
    this.#sysfs = new PciSysfs(kernel);
    this.#modules = new KernelModules(kernel);
  }

  /**
   * The functions that the texts name: an address, with or without the domain; a network interface; or a shell-style
   * pattern for either, which does not match bridges. Each function appears once.
   *
   * @throws DmaError ENODEV for a text that names no function
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
        ? `${text} is a driver: anydma bind --driver ${text} DEVICE`
        : 'anydma devices lists all devices';
      throw new DmaError({ code: 'ENODEV', operation: this.#operation, reason, hint });
    });
    return [...new Map(chosen.map((fn) => [fn.address, fn])).values()];
  }

  /**
   * Binds functions to a driver, one after the other. A function that has the driver already is left unchanged. If one
   * function fails, the others are still tried.
   *
   * @param plans the result of {@link plan} for the same arguments, if the caller has it already
   * @throws DmaError, before anything is changed: EINVAL for a text that can not be a driver's name; ENOTSUP if there
   *   is no such driver; ENODEV for a VFIO driver on a machine without an IOMMU
   */
  bind(
    functions: readonly PciFunction[],
    options: BindOptions = {},
    plans: readonly BindPlan[] = this.plan(functions, options),
  ): BindResult[] {
    const { driver = DEFAULT_DRIVER, force = false, owner } = options;
    if (isVfioDriver(driver)) this.#checkIommu(options.noIommuMode === true, true);
    return plans.map((plan) =>
      this.#each(plan, (fn) => {
        if (plan.action === 'take') this.#take(fn, force);
        if (plan.action === 'bind') this.#give(fn, driver, force);
        if (owner !== undefined && isVfioDriver(driver)) this.#own(fn.address, owner);
      }),
    );
  }

  /**
   * What {@link bind} would do, and why not; changes nothing. A function that is in use is refused with EBUSY unless
   * `force` is given. If its uses can not be found out, it is refused with the error of that question. With
   * `wholeGroup`, one refused function blocks its whole group.
   *
   * @throws DmaError as `bind`
   */
  plan(functions: readonly PciFunction[], options: BindOptions = {}): BindPlan[] {
    const { driver = DEFAULT_DRIVER, force = false, wholeGroup = false } = options;
    this.#checkDriver(driver);
    if (isVfioDriver(driver)) this.#checkIommu(options.noIommuMode === true, false);
    const machine = new MachineUses(this.#kernel);
    const plans = (wholeGroup ? this.#withGroups(functions) : functions).map((fn) => {
      const to = driver === NO_DRIVER ? undefined : driver;
      const { address, ids, driver: from } = fn;
      if (from === to) return { fn, address, ids, from, to, action: 'leave' as const, ...UNUSED, error: undefined };
      const action = to === undefined ? ('take' as const) : ('bind' as const);
      const bridge = isBridge(fn) && isVfioDriver(to);
      const about = bridge ? UNUSED : machine.of(fn);
      const error = bridge
        ? this.#refused(fn, 'ENOTSUP', 'it is a bridge, which VFIO does not take', 'name the devices behind it')
        : force
          ? undefined
          : this.#refusal(fn, about);
      return { fn, address, ids, from, to, action, ...about, error };
    });
    return plans.map(({ fn, ...plan }) => {
      const culprit = plans.find(
        (other) => other.error !== undefined && !isBridge(other.fn) && other.fn.group === fn.group,
      );
      if (!wholeGroup || fn.group === undefined || plan.error !== undefined || culprit?.error === undefined)
        return plan;
      const { code, hint, reason } = culprit.error;
      return {
        ...plan,
        error: this.#refused(fn, code, `${culprit.address} in its IOMMU group can not be taken: ${reason}`, hint),
      };
    });
  }

  /**
   * Gives functions back to the kernel's own drivers. A function that has such a driver is left unchanged. It is not an
   * error if no driver takes it. EBUSY if a VFIO driver takes it again.
   */
  unbind(
    functions: readonly PciFunction[],
    options: Pick<BindOptions, 'force'> = {},
    plans: readonly BindPlan[] = this.unbindPlan(functions, options),
  ): BindResult[] {
    return plans.map((plan) =>
      this.#each(plan, (fn) => {
        if (plan.action === 'leave') return;
        this.#take(fn, options.force === true);
        this.#probe(fn.address);
        this.#mustBeReleased(fn);
      }),
    );
  }

  /**
   * What {@link unbind} would do, and why not; changes nothing. EBUSY for a function that a program has open, unless
   * `force` is given.
   */
  unbindPlan(functions: readonly PciFunction[], options: Pick<BindOptions, 'force'> = {}): BindPlan[] {
    const machine = new MachineUses(this.#kernel);
    return functions.map((fn) => {
      const { address, ids, driver: from } = fn;
      const plan = { address, ids, from, to: undefined, ...UNUSED, error: undefined };
      if (from !== undefined && !isVfioDriver(from) && !USER_SPACE_DRIVERS.includes(from))
        return { ...plan, to: from, action: 'leave' };
      const about = from === undefined ? UNUSED : machine.of(fn);
      return {
        ...plan,
        ...about,
        action: 'release',
        error: options.force === true ? undefined : this.#refusal(fn, about),
      };
    });
  }

  /** Modules that could drive a function: for the hint after no driver took it. */
  modulesFor({ modalias }: PciFunction): string[] {
    return this.#modules.forModalias(modalias);
  }

  #each({ address, ids, from, error: refusal }: BindPlan, work: (fn: PciFunction) => void): BindResult {
    const result = (error?: DmaError): BindResult => ({ address, from, to: this.#sysfs.driver(address), error });
    if (refusal !== undefined) return result(refusal);
    try {
      const fn = this.#sysfs.read(address);
      if (fn === undefined)
        throw new DmaError({
          code: 'ENODEV',
          operation: this.#operation,
          reason: 'the device was removed',
          hint: 'anydma devices lists all devices',
        });
      if (modelOf(fn.ids) !== modelOf(ids)) {
        const reason = `a different device is at this address now: ${modelOf(fn.ids)} instead of ${modelOf(ids)}`;
        const hint = 'run "anydma devices", and name the device again';
        throw new DmaError({ code: 'ENODEV', operation: this.#operation, reason, hint });
      }
      work(fn);
      return result();
    } catch (error) {
      if (!isDmaError(error)) throw error;
      return result(
        error.with({ operation: this.#operation, device: `pci:${address}`, hint: error.hint ?? hintFor(error) }),
      );
    }
  }

  #give(fn: PciFunction, driver: string, force: boolean): void {
    const { address, driver: old, driverOverride } = fn;
    const undo: (() => void)[] = [];
    try {
      // While the disks are claimed, no other program can begin to use them before the driver is unbound.
      using claimed = force ? undefined : this.#claim(fn);
      undo.unshift(() => this.#override(address, driverOverride));
      this.#override(address, driver);
      if (old !== undefined) {
        undo.unshift(() => {
          // The driver can not create its disks again while they are claimed.
          claimed?.[Symbol.dispose]();
          this.#restore(address, old);
        });
        this.#unbindFrom(old, address);
      }
      claimed?.[Symbol.dispose]();
      this.#probe(address);
      // drivers_probe reports no error if a driver declines the device; binding by name does.
      if (this.#sysfs.driver(address) !== driver) this.#bindTo(driver, address);
      this.#mustHave(fn, driver);
    } catch (error) {
      throw withUndo(error, this.#operation, undoAll(undo));
    }
    this.#override(address, undefined);
  }

  /** Leaves the function without a driver. */
  #take(fn: PciFunction, force: boolean): void {
    const { address, driver } = fn;
    if (driver !== undefined) {
      using _claimed = force ? undefined : this.#claim(fn);
      this.#unbindFrom(driver, address);
      this.#mustHave(fn, undefined);
    }
    this.#override(address, undefined);
  }

  /**
   * Claims the disks of the function until the result is disposed of.
   *
   * @throws DmaError as `bind`, if the function is in use
   */
  #claim(fn: PciFunction): Disposable {
    const claimed = new MachineUses(this.#kernel).claim(fn);
    const error = this.#refusal(fn, claimed);
    if (error === undefined) return claimed;
    claimed[Symbol.dispose]();
    throw error;
  }

  /** Checks that the function has the expected driver. */
  #mustHave(fn: PciFunction, driver: string | undefined): void {
    const now = this.#sysfs.driver(fn.address);
    if (now === driver) return;
    throw this.#refused(
      fn,
      'EBUSY',
      `the kernel accepted the command, but ${now ?? 'no driver'} has the device`,
      'the kernel log (dmesg) says why',
    );
  }

  /** A VFIO driver that knows the device's id (new_id or ids=) takes the device as soon as it has no driver. */
  #mustBeReleased(fn: PciFunction): void {
    const { address, ids } = fn;
    const now = this.#sysfs.driver(address);
    if (now === undefined || (!isVfioDriver(now) && !USER_SPACE_DRIVERS.includes(now))) return;
    const module = now.replaceAll('-', '_');
    throw this.#refused(
      fn,
      'EBUSY',
      `${now} took it again: it claims all devices with the id ${hex4(ids.vendor)}:${hex4(ids.device)}`,
      `echo "${hex4(ids.vendor)} ${hex4(ids.device)}" > /sys/bus/pci/drivers/${now}/remove_id, if the id was added by new_id; if it ` +
        `was given as an option (ids=), remove it from /etc/modprobe.d or from the kernel's command line (${now}.ids=) and load ` +
        `${module} again; or name the driver: anydma bind --driver DRIVER ` +
        address,
    );
  }

  #checkDriver(driver: string): void {
    if (driver === NO_DRIVER) return;
    if (parsePciAddress(driver) !== undefined || this.#kernel.list(`/sys/class/net/${driver}`).length > 0)
      throw invalid(this.#operation, `"${driver}" is a device, not a driver`, {
        hint: 'anydma bind --driver vfio-pci DEVICE',
      });
    if (!/^[\w-]+$/.test(driver))
      throw invalid(this.#operation, `"${driver}" is not a driver's name`, {
        hint: 'such as vfio-pci: letters, digits, dashes and underscores; /sys/bus/pci/drivers lists the loaded drivers',
      });
    if (this.#sysfs.hasDriver(driver)) return;
    const hint = isVfioDriver(driver) ? loadVfio(this.#modules) : `modprobe ${driver}`;
    throw new DmaError({
      code: 'ENOTSUP',
      operation: this.#operation,
      reason: `the driver ${driver} is not loaded`,
      hint,
    });
  }

  /** @param change enable the mode; false: only check whether that is possible */
  #checkIommu(switchOn: boolean, change: boolean): void {
    if (this.#sysfs.hasIommu()) return;
    const mode = noIommuMode(this.#kernel);
    if (mode === true) return;
    if (switchOn && mode === false) {
      if (change) this.#kernel.writeText(NO_IOMMU_MODE, '1');
      return;
    }
    throw new DmaError({
      code: 'ENODEV',
      operation: this.#operation,
      reason: 'the machine has no IOMMU, or it is off',
      hint: switchOn
        ? 'this kernel was built without no-IOMMU mode (CONFIG_VFIO_NOIOMMU)'
        : 'enable it in the firmware and on the kernel command line (intel_iommu=on); or use --noiommu-mode if nothing needs ' +
          'protection from the device',
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

  /** Binds the function to its old driver again. */
  #restore(address: string, driver: string): void {
    const now = this.#sysfs.driver(address);
    if (now === driver) return;
    if (now !== undefined) this.#unbindFrom(now, address);
    this.#override(address, undefined);
    this.#bindTo(driver, address);
  }

  #override(address: string, driver: string | undefined): void {
    // An empty line removes the override.
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

  /** Changes the owner of the device files that belong to this function alone. Shared files keep their owner. */
  #own(address: string, { user, group }: NonNullable<BindOptions['owner']>): void {
    const fn = this.#sysfs.read(address);
    if (fn === undefined) return;
    for (const [, [, node]] of nodesOf(this.#sysfs, fn))
      if (this.#kernel.mayOpen(node) !== 'no-such-file') this.#kernel.changeOwner(node, user ?? -1, group ?? -1);
  }

  /** Why a function with these uses is refused; `undefined` if it is not in use. */
  #refusal(fn: PciFunction, { uses, unknown }: FunctionUses): DmaError | undefined {
    if (uses.length > 0)
      return this.#refused(
        fn,
        'EBUSY',
        `it is in use: ${usesText(uses)}`,
        `stop that first (${usesTodo(uses)}), or take the device anyway with --force`,
      );
    if (unknown.length === 0) return undefined;
    const [{ code }] = unknown;
    const reasons = unknown.map(({ reason }) => ({ text: reason }));
    return this.#refused(
      fn,
      code,
      `it is not known whether it is in use: ${usesText(reasons)}`,
      'ask as root, on the host instead of in a container; or take the device anyway with --force',
    );
  }

  #refused(fn: PciFunction, code: ErrorCode, reason: string, hint?: string): DmaError {
    return new DmaError({ code, operation: this.#operation, device: `pci:${fn.address}`, reason, hint });
  }
}

function matches({ address, interfaces }: PciFunction, pattern: RegExp): boolean {
  return [address, address.replace(/^0000:/, ''), ...interfaces].some((name) => pattern.test(name));
}

function hintFor({ code }: DmaError): string | undefined {
  if (code === 'EACCES' || code === 'EPERM') return 'changing drivers needs root';
  if (code === 'EBUSY') return 'if SR-IOV is enabled for it, write 0 to its sriov_numvfs first';
  return undefined;
}

function hex4(number: number): string {
  return number.toString(16).padStart(4, '0');
}

/** The ids of a device: its own, those of its subsystem, and its class. */
function modelOf({ vendor, device, subsystemVendor, subsystem, classCode }: PciFunction['ids']): string {
  const whose = `${hex4(subsystemVendor)}:${hex4(subsystem)}`;
  return `${hex4(vendor)}:${hex4(device)} (${whose}, class ${classCode.toString(16).padStart(6, '0')})`;
}
