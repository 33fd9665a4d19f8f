/**
 * Which kernel driver has a PCI function: handing it to vfio-pci, and back. By driver_override and drivers_probe
 * (Documentation/ABI/testing/sysfs-bus-pci), so that no other device is touched. What is done stays done when this process ends.
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
  /** The driver that shall have them; `none` for no driver at all. Default `vfio-pci`. */
  readonly driver?: string;
  /** Take a function away even when it is in use, or when that can not be told. */
  readonly force?: boolean;
  /** Bind the other members of their IOMMU groups as well. */
  readonly wholeGroup?: boolean;
  /** Switch VFIO's no-IOMMU mode on when the machine has no IOMMU. It protects nothing and taints the kernel. */
  readonly noIommuMode?: boolean;
  /** Who shall own VFIO's device files, by number. What is left out stays as it is. */
  readonly owner?: { readonly user?: number; readonly group?: number };
}

/** What would be done with one function. */
export interface BindPlan {
  readonly address: string;
  /** The device that was there when the plan was made. */
  readonly ids: PciFunction['ids'];
  /** The driver now; `undefined` for none. */
  readonly from: string | undefined;
  /**
   * `bind`: it would be given to `to`; `take`: it would be left without a driver; `release`: it would be given to whichever of
   * the kernel's own drivers wants it; `leave`: nothing, it is as it should be.
   */
  readonly action: 'bind' | 'take' | 'release' | 'leave';
  /** The driver that it would be given to. */
  readonly to: string | undefined;
  /** Who uses it: it would be taken from them. */
  readonly uses: readonly Use[];
  /** What could not be asked about who uses it. */
  readonly unknown: readonly Unasked[];
  /** Why nothing would be done. */
  readonly error: DmaError | undefined;
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

/** Who uses nothing, and nothing that could not be asked. */
const UNUSED: FunctionUses = { uses: [], unknown: [] };

/** Drivers that only hand a device to user space. */
const USER_SPACE_DRIVERS: readonly string[] = ['uio_pci_generic', 'igb_uio', 'pci-stub'];

/** Moves PCI functions from driver to driver. */
export class PciBinder {
  readonly #sysfs: PciSysfs;
  readonly #kernel: KernelPort;
  readonly #modules: KernelModules;
  readonly #operation: 'bind' | 'unbind';

  /** @param operation what errors call it */
  constructor(kernel: KernelPort, operation: 'bind' | 'unbind' = 'bind') {
    this.#operation = operation;
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
      throw new DmaError({ code: 'ENODEV', operation: this.#operation, reason, hint });
    });
    return [...new Map(chosen.map((fn) => [fn.address, fn])).values()];
  }

  /**
   * Gives functions to a driver, one after the other; a function that has it already is left as it is. What can not be
   * done for one does not keep it from being done for the others.
   *
   * @param plans what {@link plan} said to the same, when that was asked already
   * @throws DmaError, before anything was changed: EINVAL for a driver that is no name of one; ENOTSUP when there is no such
   *   driver; ENODEV when it is VFIO's, and the machine has no IOMMU
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
   * What {@link bind} would do, and why not; nothing is changed. A function that is in use, or of which that can not be told,
   * is refused (EBUSY, or what kept it from being asked) unless `force` is given; with `wholeGroup`, nothing is done to a group
   * of which one is refused.
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
        error: this.#refused(fn, code, `of its IOMMU group, ${culprit.address} can not be taken: ${reason}`, hint),
      };
    });
  }

  /**
   * Gives functions back to whichever of the kernel's own drivers wants them. A function that such a driver has is left as
   * it is. That no driver wants it is no error; that a driver of VFIO's takes it again is EBUSY.
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

  /** What {@link unbind} would do, and why not; nothing is changed. A function that a program has open is EBUSY, unless `force` is given. */
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

  /** Modules that could drive a function, for the hint if no driver took it. */
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
          reason: 'it is gone',
          hint: 'anydma devices lists what there is',
        });
      if (modelOf(fn.ids) !== modelOf(ids)) {
        const reason = `another device is there now: ${modelOf(fn.ids)}, and ${modelOf(ids)} was meant`;
        const hint = 'look at what is there with "anydma devices", and name it again';
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
      // Until it has left its driver, nobody else gets its disks.
      using claimed = force ? undefined : this.#claim(fn);
      undo.unshift(() => this.#override(address, driverOverride));
      this.#override(address, driver);
      if (old !== undefined) {
        undo.unshift(() => {
          // A driver can not have the names of its disks again while they are claimed.
          claimed?.[Symbol.dispose]();
          this.#restore(address, old);
        });
        this.#unbindFrom(old, address);
      }
      claimed?.[Symbol.dispose]();
      this.#probe(address);
      // The kernel does not tell why a driver that it tried did not take the device; binding by name does.
      if (this.#sysfs.driver(address) !== driver) this.#bindTo(driver, address);
      this.#mustHave(fn, driver);
    } catch (error) {
      throw withUndo(error, this.#operation, undoAll(undo));
    }
    this.#override(address, undefined);
  }

  /** Leaves it without a driver. */
  #take(fn: PciFunction, force: boolean): void {
    const { address, driver } = fn;
    if (driver !== undefined) {
      using _claimed = force ? undefined : this.#claim(fn);
      this.#unbindFrom(driver, address);
      this.#mustHave(fn, undefined);
    }
    this.#override(address, undefined);
  }

  /** Claims its disks until this is disposed of. @throws DmaError as `bind`, if something uses it */
  #claim(fn: PciFunction): Disposable {
    const claimed = new MachineUses(this.#kernel).claim(fn);
    const error = this.#refusal(fn, claimed);
    if (error === undefined) return claimed;
    claimed[Symbol.dispose]();
    throw error;
  }

  /** Checks what the kernel did with the command. */
  #mustHave(fn: PciFunction, driver: string | undefined): void {
    const now = this.#sysfs.driver(fn.address);
    if (now === driver) return;
    throw this.#refused(
      fn,
      'EBUSY',
      `the kernel did as it was told, and ${now ?? 'no driver'} has it`,
      'the kernel log (dmesg) says why',
    );
  }

  /** A driver of VFIO's that was told its id takes it whenever it is free. */
  #mustBeReleased(fn: PciFunction): void {
    const { address, ids } = fn;
    const now = this.#sysfs.driver(address);
    if (now === undefined || (!isVfioDriver(now) && !USER_SPACE_DRIVERS.includes(now))) return;
    const module = now.replaceAll('-', '_');
    throw this.#refused(
      fn,
      'EBUSY',
      `${now} took it again: it claims all devices with the id ${hex4(ids.vendor)}:${hex4(ids.device)}`,
      `echo "${hex4(ids.vendor)} ${hex4(ids.device)}" > /sys/bus/pci/drivers/${now}/remove_id, when the id came by new_id; when it ` +
        `came by an option (ids=), take it out of /etc/modprobe.d or of the kernel's command line (${now}.ids=) and load ${module} ` +
        'anew; or name the driver: anydma bind --driver DRIVER ' +
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
      throw invalid(this.#operation, `"${driver}" is no name of a driver`, {
        hint: 'such as vfio-pci: letters, digits, dashes and underscores; /sys/bus/pci/drivers has those that are loaded',
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

  /** @param change switch the mode on; else only see whether that could be done */
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

  /** Why a function with these uses is not taken; `undefined` when nobody uses it. */
  #refusal(fn: PciFunction, { uses, unknown }: FunctionUses): DmaError | undefined {
    if (uses.length > 0)
      return this.#refused(
        fn,
        'EBUSY',
        `it is in use: ${usesText(uses)}`,
        `end that first (${usesTodo(uses)}), or take it all the same with --force`,
      );
    if (unknown.length === 0) return undefined;
    const [{ code }] = unknown;
    const reasons = unknown.map(({ reason }) => ({ text: reason }));
    return this.#refused(
      fn,
      code,
      `it can not be told whether it is in use: ${usesText(reasons)}`,
      'ask as root, on the machine itself rather than in a container; or take it all the same with --force',
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
  if (code === 'EACCES' || code === 'EPERM') return 'changing drivers takes root';
  if (code === 'EBUSY') return 'is SR-IOV switched on for it? Then write 0 into its sriov_numvfs first';
  return undefined;
}

function hex4(number: number): string {
  return number.toString(16).padStart(4, '0');
}

/** What a device is, as lspci writes it: its ids, those of its maker's subsystem, and its class. */
function modelOf({ vendor, device, subsystemVendor, subsystem, classCode }: PciFunction['ids']): string {
  const whose = `${hex4(subsystemVendor)}:${hex4(subsystem)}`;
  return `${hex4(vendor)}:${hex4(device)} (${whose}, class ${classCode.toString(16).padStart(6, '0')})`;
}
