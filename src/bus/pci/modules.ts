/** Kernel modules on disk: which ones exist, and which ones support a device (files of modprobe, modules.dep(5)). */
import { NO_PERMISSION, unlessFails } from '../../errors.js';
import type { KernelPort } from '../../platform/ports.js';
import { escaped, glob } from './glob.js';

/** The modules of the running kernel. Their lists are read once, on first use. */
export class KernelModules {
  readonly #kernel: KernelPort;
  #directory: string | undefined;
  #names: string | undefined;
  #aliases: readonly (readonly [pattern: string, module: string])[] | undefined;

  constructor(kernel: KernelPort) {
    this.#kernel = kernel;
  }

  /** Whether `modprobe name` could work, or the module is built in; `undefined` if that can not be found out. */
  has(name: string): boolean | undefined {
    this.#names ??= ['modules.dep', 'modules.builtin'].map((file) => this.#read(file)).join('\n');
    if (this.#names.trim() === '') return undefined;
    return new RegExp(`/${escaped(name).replace(/[-_]/g, '[-_]')}\\.ko`).test(this.#names);
  }

  /** Names of the modules that support a device with this modalias, in the order of the file. */
  forModalias(modalias: string): string[] {
    if (modalias === '') return [];
    this.#aliases ??= [...this.#read('modules.alias').matchAll(/^alias (pci:\S+) (\S+)$/gm)].map(
      ([, pattern, module]) => [pattern, module] as const,
    );
    // Most patterns begin with the vendor: compare only those in full.
    const vendor = modalias.slice(0, 'pci:v00001234'.length);
    const fits = this.#aliases.filter(
      ([pattern]) => (pattern.startsWith(vendor) || pattern.startsWith('pci:v*')) && glob(pattern).test(modalias),
    );
    return [...new Set(fits.map(([, module]) => module))];
  }

  #read(file: string): string {
    this.#directory ??= `/lib/modules/${this.#kernel.readText('/proc/sys/kernel/osrelease')?.trim() ?? ''}`;
    // The names are only used in hints, so missing permission is not an error.
    return unlessFails(NO_PERMISSION, () => this.#kernel.readText(`${this.#directory}/${file}`)) ?? '';
  }
}
