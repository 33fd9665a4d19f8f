/** An emulated device in a process of its own: real DMA by another process, on any machine, without privileges. */
import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { atExit } from '../at-exit.js';
import { optionsOf } from '../check.js';
import { DmaError, invalid, isDmaError } from '../errors.js';
import { HERE } from '../here.js';
import { needDescriptors } from '../platform/linux/libc.js';
import { fromNode } from '../platform/linux/node-errors.js';
import { temporaryFolder } from '../platform/linux/temporary-folder.js';
import { show } from '../show.js';
import { DEVICE_NAMES, deviceModel, type DeviceName, type DeviceOptions } from './devices/catalog.js';
import { checkMaxDmaMaps } from './server.js';
import type { DeviceProcessArguments, DeviceProcessReport } from './device-process-main.js';
import { clearTimeout, setTimeout } from '../timers.js';

/**
 * Milliseconds to wait for the socket, and for a child to end before it is killed. The end of a child that can not start is noticed
 * at once; the first one is for a child that hangs, and longer than a busy machine takes to load the program.
 */
const START_TIMEOUT = 60_000;
const END_TIMEOUT = 2000;

/** Where the program of a device process may be: in this library, or beside a bundle. */
const PROGRAMS = ['./vfio-user/device-process-main.js', './device-process-main.js'].map((path) =>
  fileURLToPath(new URL(path, HERE)),
);

/** How many descriptors Node needs temporarily to start a process. */
const FORK_DESCRIPTORS = 6;

/** A running device process. */
export interface DeviceProcess extends AsyncDisposable {
  /** The path to connect to, in a directory that only this user can enter. */
  readonly socketPath: string;
  readonly pid: number;
  /** Ends the process and removes its directory. Idempotent. */
  close(): Promise<void>;
}

const SPAWN_OPTIONS = { device: 'object', maxDmaMaps: 'number' } as const;

/** Options of {@link spawnDevice}. */
export interface SpawnOptions<N extends DeviceName> {
  /** The device's own options. */
  readonly device?: DeviceOptions[N];
  /** The most DMA regions of a client. */
  readonly maxDmaMaps?: number;
}

/**
 * Starts a process that serves a device; resolves when its socket accepts connections. The process never outlives this
 * one, and does not keep it alive.
 *
 * @throws DmaError EINVAL for an unknown device or impossible options; EIO with the child's error; ETIMEDOUT if the
 *   child did not answer; EMFILE, ENOMEM, EAGAIN ... if no process can be started; ENOTSUP in a bundle without the
 *   program beside it; ENOENT, EACCES ... if the temporary directory can not be used
 */
export async function spawnDevice<N extends DeviceName>(name: N, options?: SpawnOptions<N>): Promise<DeviceProcess> {
  const operation = `device process ${show(name)}`;
  if (typeof name !== 'string')
    throw invalid(operation, `the name of a device is a string, not ${show(name)}`, {
      hint: `there are ${DEVICE_NAMES.join(' and ')}`,
    });
  const { device, maxDmaMaps } = optionsOf<SpawnOptions<N>>(options, SPAWN_OPTIONS, operation);
  // Options that the process would refuse are refused here: its model is made here as well.
  deviceModel(name, device);
  if (maxDmaMaps !== undefined) checkMaxDmaMaps(maxDmaMaps, operation);
  const main = programOfDevices(operation);
  // Node leaks descriptors if it runs out of them while it starts a process.
  needDescriptors(operation, FORK_DESCRIPTORS);
  const directory = temporaryFolder(operation, 'the socket of the device');
  const socketPath = join(directory, `${name}.sock`);
  let child: ChildProcess | undefined;
  const removeAll = (): void => {
    forgetExit();
    if (child?.connected === true) child.disconnect();
    child?.kill('SIGKILL');
    rmSync(directory, { recursive: true, force: true });
  };
  const forgetExit = atExit(removeAll);
  try {
    const argument: DeviceProcessArguments = { name, directory, socketPath, options: device ?? {}, maxDmaMaps };
    // Not the parent's own flags: the child needs no inspector or test runner.
    child = fork(main, [JSON.stringify(argument)], { execArgv: [], stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    await started(child, name);
  } catch (error) {
    removeAll();
    throw isDmaError(error) ? error : fromNode(error, process.execPath, { operation });
  }
  return running(child, socketPath, removeAll);
}

/** @throws DmaError ENOTSUP if it is not there */
function programOfDevices(operation: string): string {
  const main = PROGRAMS.find((path) => existsSync(path));
  if (main !== undefined) return main;
  throw new DmaError({
    code: 'ENOTSUP',
    operation,
    reason: `the program of devices is not there (${PROGRAMS[1]}), as in a bundle`,
    hint:
      'leave anydma out of the bundle (esbuild --external:anydma), or bundle its dist/src/vfio-user/device-process-main.js ' +
      'into the same folder as a program of its own',
  });
}

/** A child that serves. @param removeAll kills it and removes what it left */
function running(child: ChildProcess, socketPath: string, removeAll: () => void): DeviceProcess {
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const disconnected = new Promise<void>((resolve) => {
    if (child.connected) child.once('disconnect', () => resolve());
    else resolve();
  });
  child.unref();
  child.channel?.unref();

  let closing: Promise<void> | undefined;
  const close = (): Promise<void> =>
    (closing ??= (async () => {
      // Of a process that was killed, the end may be known before that of its channel, which has a descriptor.
      if (child.connected) child.disconnect();
      if (child.exitCode === null && child.signalCode === null) {
        child.ref();
        const timer = setTimeout(() => child.kill('SIGKILL'), END_TIMEOUT);
        await exited;
        clearTimeout(timer);
      }
      await disconnected;
      removeAll();
    })());
  return { socketPath, pid: child.pid ?? 0, close, [Symbol.asyncDispose]: close };
}

/** Resolves when the child serves; rejects if it fails, ends or does not answer. */
function started(child: ChildProcess, name: string): Promise<void> {
  const operation = `device process ${name}`;
  return new Promise((resolve, reject) => {
    const fail = (code: 'EIO' | 'ETIMEDOUT', reason: string): void => {
      finish();
      const hint = `what the process itself said is on standard error; "anydma serve ${name}" runs the same by hand`;
      reject(new DmaError({ code, operation, reason, hint }));
    };
    const onMessage = ({ error }: DeviceProcessReport): void => {
      if (error !== undefined) {
        fail('EIO', error);
        return;
      }
      finish();
      resolve();
    };
    const onError = (error: Error): void => {
      finish();
      reject(fromNode(error, 'it could not be started', { operation }));
    };
    const onExit = (status: number | null, signal: string | null): void =>
      fail('EIO', `it ended with ${signal ?? `status ${status}`}`);
    const timer = setTimeout(() => fail('ETIMEDOUT', `no answer within ${START_TIMEOUT} ms`), START_TIMEOUT);
    const finish = (): void => {
      clearTimeout(timer);
      child.off('message', onMessage).off('error', onError).off('exit', onExit);
    };
    child.on('message', onMessage).on('error', onError).on('exit', onExit);
  });
}
