/** The long form of the batteries of hostile peers: every message torn at every byte. Takes about a minute. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openPlatform } from '../../src/platform/open.js';
import { attackServer } from './battery.js';
import { attackExchange } from './exchange.js';

const folder = mkdtempSync(join(tmpdir(), 'hostile-'));
try {
  await attackServer(openPlatform(), folder, 1);
  console.log('the server outlived all of it');
  await attackExchange(1);
  console.log('the server of the exchange outlived all of it');
} finally {
  rmSync(folder, { recursive: true });
}
