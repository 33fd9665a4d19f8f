/** The long form of the batteries of hostile peers: every message torn at every byte. It takes some minutes. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openPlatform } from '../../src/platform/open.js';
import { attackServer } from './battery.js';
import { attackExchange } from './exchange.js';
import { attackClient } from './servers.js';

const platform = openPlatform();
for (const [what, attack] of [
  ['server', attackServer],
  ['client', attackClient],
] as const) {
  const folder = mkdtempSync(join(tmpdir(), 'hostile-'));
  try {
    console.log(`the ${what} outlived ${await attack(platform, folder, { every: 1, some: 1 })} attacks`);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
await attackExchange(1);
console.log('the server of the exchange outlived all of it');
if (process.getuid?.() !== 0) console.log('as root there are also peers of another user, hugepages and FUSE');
