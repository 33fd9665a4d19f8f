/**
 * QEMU without a guest: its test protocol (docs/devel/testing/qtest.rst in QEMU) plays the processor, one load, store or
 * I/O instruction a command, so that a device can be driven as a guest's driver would, with no system to boot.
 */
import type { ChildProcessByStdio } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { MiB } from '../../src/units.js';
import { spawnTied } from '../shared/tied.js';

/** Guest memory, in bytes. */
export const GUEST_MEMORY = 128 * MiB;

/**
 * What guest memory is made of, which decides what QEMU can pass to a device's server: `memfd`, a sealed memory file;
 * `file`, a file that could be made shorter; `private`, memory of QEMU's own, which only messages reach.
 */
export type MemoryKind = 'memfd' | 'file' | 'private';

/** How to start QEMU. Paths are as QEMU sees them, from inside `root`. */
export interface QemuOptions {
  /** The directory with QEMU's system. */
  readonly root: string;
  readonly memory: MemoryKind;
  /** A directory for the memory file. */
  readonly directory: string;
  /** The server's socket for each PCI slot. */
  readonly devices: readonly { readonly slot: number; readonly socket: string }[];
}

/** A QEMU that could not be started, and what it said. */
export class QemuFailure extends Error {}

/** milliseconds */
const COMMAND_TIMEOUT = 20_000;

const MAX_SAID = 20;

/** See the head of the file. */
export class Qemu implements AsyncDisposable {
  /** Interrupt lines of the I/O APIC that have been raised, in order; see {@link interceptInterrupts}. */
  readonly raised: number[] = [];
  /** The first lines of standard error, where QEMU complains about its devices. */
  readonly said: string[] = [];
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #waiting: { resolve: (line: string) => void; reject: (error: Error) => void }[] = [];
  readonly #exit: Promise<unknown>;

  private constructor(child: ChildProcessByStdio<Writable, Readable, Readable>) {
    this.#child = child;
    this.#exit = once(child, 'close');
    child.stdin.on('error', () => undefined);
    createInterface({ input: child.stderr }).on('line', (line) => {
      if (this.said.length < MAX_SAID) this.said.push(line);
    });
    createInterface({ input: child.stdout }).on('line', (line) => {
      const raised = /^IRQ raise (\d+)/.exec(line);
      if (raised !== null) this.raised.push(Number(raised[1]));
      else if (!line.startsWith('IRQ')) this.#waiting.shift()?.resolve(line);
    });
    child.on('close', () => {
      for (const { reject } of this.#waiting.splice(0)) reject(this.#failure());
    });
  }

  /** Starts QEMU; resolves when its devices are connected. Rejects with {@link QemuFailure}. */
  static async start({ root, memory, directory, devices }: QemuOptions): Promise<Qemu> {
    const backend = {
      memfd: `memory-backend-memfd,id=mem,size=${GUEST_MEMORY},share=on`,
      file: `memory-backend-file,id=mem,size=${GUEST_MEMORY},share=on,mem-path=${directory}/memory`,
      private: `memory-backend-ram,id=mem,size=${GUEST_MEMORY}`,
    }[memory];
    const args = [
      ...['-machine', 'q35,memory-backend=mem', '-m', `${GUEST_MEMORY / MiB}M`, '-object', backend, '-nodefaults'],
      ...['-display', 'none', '-accel', 'qtest', '-qtest', 'stdio', '-qtest-log', '/dev/null'],
      ...devices.flatMap(({ slot, socket }) => [
        '-device',
        JSON.stringify({ driver: 'vfio-user-pci', addr: slot.toString(16), socket: { type: 'unix', path: socket } }),
      ]),
    ];
    const child = spawnTied('chroot', [root, 'qemu-system-x86_64', ...args]);
    const qemu = new Qemu(child);
    try {
      // Answered when the machine is complete, which it is once all devices have been talked to.
      await qemu.command('endianness');
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
    return qemu;
  }

  /** Sends one command and resolves with what stands behind `OK` in the answer. */
  command(line: string): Promise<string> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return Promise.reject(this.#failure());
    return new Promise<string>((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(new Error(`QEMU does not answer: ${line.slice(0, 80)}`));
      }, COMMAND_TIMEOUT);
      this.#waiting.push({
        resolve: (answer) => {
          clearTimeout(timer);
          if (answer.startsWith('OK')) resolve(answer.slice(3));
          else reject(new Error(`${line.slice(0, 80)}: ${answer}`));
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      this.#child.stdin.write(`${line}\n`);
    });
  }

  /** A load of 32 bits from physical address `address`. */
  async read32(address: number): Promise<number> {
    return Number(BigInt.asUintN(32, BigInt(await this.command(`readl ${address}`))));
  }

  async write32(address: number, value: number): Promise<void> {
    await this.command(`writel ${address} ${value >>> 0}`);
  }

  async read64(address: number): Promise<bigint> {
    return BigInt(await this.command(`readq ${address}`));
  }

  async write64(address: number, value: bigint): Promise<void> {
    await this.command(`writeq ${address} ${value}`);
  }

  async outb(port: number, value: number): Promise<void> {
    await this.command(`outb ${port} ${value}`);
  }

  /** Bytes of guest memory. */
  async read(address: number, length: number): Promise<Uint8Array> {
    return Buffer.from(await this.command(`b64read ${address} ${length}`), 'base64');
  }

  async write(address: number, bytes: Uint8Array): Promise<void> {
    await this.command(`b64write ${address} ${bytes.length} ${Buffer.from(bytes).toString('base64')}`);
  }

  async fill(address: number, length: number, value: number): Promise<void> {
    await this.command(`memset ${address} ${length} ${value}`);
  }

  /** 32 bits of configuration space of the device in `slot` (configuration mechanism 1). */
  async readConfig(slot: number, offset: number): Promise<number> {
    await this.command(`outl 0xcf8 ${(0x80000000 | (slot << 11) | offset) >>> 0}`);
    return Number(await this.command('inl 0xcfc'));
  }

  async writeConfig(slot: number, offset: number, value: number): Promise<void> {
    await this.command(`outl 0xcf8 ${(0x80000000 | (slot << 11) | offset) >>> 0}`);
    await this.command(`outl 0xcfc ${value >>> 0}`);
  }

  /** Writes one byte of configuration space. */
  async writeConfigByte(slot: number, offset: number, value: number): Promise<void> {
    await this.command(`outl 0xcf8 ${(0x80000000 | (slot << 11) | (offset & ~3)) >>> 0}`);
    await this.command(`outb ${0xcfc + (offset & 3)} ${value}`);
  }

  /** From here on interrupts that reach the I/O APIC end up in {@link raised}. */
  async interceptInterrupts(): Promise<void> {
    await this.command('irq_intercept_in ioapic');
  }

  /** Ends QEMU in good order. */
  async quit(): Promise<void> {
    this.#child.kill('SIGTERM');
    await this.#exit;
  }

  /** Ends QEMU in no order. */
  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#exit;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.kill();
  }

  #failure(): QemuFailure {
    const { exitCode, signalCode } = this.#child;
    return new QemuFailure(`QEMU ended with ${exitCode ?? signalCode}: ${this.said.join('\n')}`);
  }
}
