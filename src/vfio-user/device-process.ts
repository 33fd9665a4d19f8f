/** An embedded device in a process of its own: real DMA by another process, on any machine, without privileges. */
import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DmaError } from '../errors.js';
import type { DeviceName, DeviceOptions } from './devices/catalog.js';
import type { DeviceProcessArguments, DeviceProcessReport } from './device-process-main.js';

/** Milliseconds: until the socket is there, and until a child that was asked to end is made to. */
const START_TIMEOUT = 15_000;
const END_TIMEOUT = 2000;

/** A running device process. */
export interface DeviceProcess extends AsyncDisposable {
  /** Where to connect to; in a directory that only this user can enter. */
  readonly socketPath: string;
  readonly pid: number;
  /** Ends the process and removes its directory. Idempotent. */
  close(): Promise<void>;
}

/** How to run a device. */
export interface SpawnOptions<N extends DeviceName> {
  /** The device's own options. */
  readonly device?: DeviceOptions[N];
  /** DMA regions that a client may have at once. */
  readonly maxDmaMaps?: number;
}

/**
 * Starts a process that serves a device, and resolves when its socket can be connected to. The process never outlives this
 * one, and does not keep it alive.
 *
 * @throws DmaError EIO with what the child said, ETIMEDOUT when it said nothing
 */
export async function spawnDevice<N extends DeviceName>(
  name: N,
  options: SpawnOptions<N> = {},
): Promise<DeviceProcess> {
  const directory = mkdtempSync(join(tmpdir(), 'anydma-'));
  const socketPath = join(directory, `${name}.sock`);
  const { device = {}, maxDmaMaps } = options;
  let child: ChildProcess | undefined;
  const removeAll = (): void => {
    process.off('exit', removeAll);
    child?.kill('SIGKILL');
    rmSync(directory, { recursive: true, force: true });
  };
  process.on('exit', removeAll);
  try {
    const argument: DeviceProcessArguments = { name, directory, socketPath, options: device, maxDmaMaps };
    const main = fileURLToPath(new URL('./device-process-main.js', import.meta.url));
    // Not the parent's own flags: an inspector or a test runner is not for the child.
    child = fork(main, [JSON.stringify(argument)], { execArgv: [], stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    await started(child, name);
  } catch (error) {
    removeAll();
    throw error;
  }
  const running = child;
  const exited = new Promise<void>((resolve) => running.once('exit', () => resolve()));
  running.unref();
  running.channel?.unref();

  let closing: Promise<void> | undefined;
  const close = (): Promise<void> =>
    (closing ??= (async () => {
      if (running.exitCode === null && running.signalCode === null) {
        running.ref();
        if (running.connected) running.disconnect();
        const timer = setTimeout(() => running.kill('SIGKILL'), END_TIMEOUT);
        await exited;
        clearTimeout(timer);
      }
      removeAll();
    })());
  return { socketPath, pid: running.pid ?? 0, close, [Symbol.asyncDispose]: close };
}

/** Resolves when the child serves; rejects when it fails, ends or says nothing. */
function started(child: ChildProcess, name: string): Promise<void> {
  const operation = `device process ${name}`;
  return new Promise((resolve, reject) => {
    const fail = (code: 'EIO' | 'ETIMEDOUT', reason: string, cause?: unknown): void => {
      finish();
      reject(new DmaError({ code, operation, reason, cause }));
    };
    const onMessage = ({ error }: DeviceProcessReport): void => {
      if (error !== undefined) {
        fail('EIO', error);
        return;
      }
      finish();
      resolve();
    };
    const onError = (error: Error): void => fail('EIO', 'it could not be started', error);
    const onExit = (status: number | null, signal: string | null): void =>
      fail('EIO', `it ended with ${signal ?? `status ${status}`}`);
    const timer = setTimeout(() => fail('ETIMEDOUT', `no sign of life within ${START_TIMEOUT} ms`), START_TIMEOUT);
    const finish = (): void => {
      clearTimeout(timer);
      child.off('message', onMessage).off('error', onError).off('exit', onExit);
    };
    child.on('message', onMessage).on('error', onError).on('exit', onExit);
  });
}
