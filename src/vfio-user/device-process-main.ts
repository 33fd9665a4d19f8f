/**
 * The program of a device process: serves one device, and ends with the process that started it (see
 * device-process.ts).
 */
import { rmSync } from 'node:fs';
import { openPlatform } from '../platform/open.js';
import { deviceModel } from './devices/catalog.js';
import type { DeviceName, DeviceOptions } from './devices/catalog.js';
import { serve } from './server.js';
import { thrown } from '../show.js';
import { setTimeout } from '../timers.js';

/** What the parent passes in the first argument, as JSON. */
export interface DeviceProcessArguments<N extends DeviceName = DeviceName> {
  readonly name: N;
  /** Only these two processes use it; the one that ends last removes it. */
  readonly directory: string;
  readonly socketPath: string;
  readonly options: DeviceOptions[N];
  readonly maxDmaMaps?: number;
}

/** What the child reports once. Without `error`, the socket accepts connections. */
export interface DeviceProcessReport {
  readonly error?: string;
}

function report(message: DeviceProcessReport): void {
  // A parent that has ended meanwhile, or whose thread has, is not told: this process ends as well.
  process.send?.(message, () => undefined);
}

const { name, directory, socketPath, options, maxDmaMaps } = JSON.parse(
  process.argv[2] ?? '',
) as DeviceProcessArguments;
try {
  const server = serve(openPlatform(), { socketPath, model: deviceModel(name, options), maxDmaMaps });
  // The channel to the parent closes when the parent closes it or dies, for any reason.
  const end = (): void => {
    rmSync(directory, { recursive: true, force: true });
    setTimeout(() => process.exit(1), 1000);
    void server.close().then(() => process.exit(0));
  };
  process.on('disconnect', end);
  // Signals to the whole group (a terminal's interrupt, a service manager's end): the parent decides. When it ends, so does this.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined);
  if (process.connected) report({});
  else end();
} catch (error) {
  report({ error: thrown(error) });
  process.exitCode = 1;
  if (process.connected) process.disconnect();
}
