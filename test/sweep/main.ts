/** Kills processes at every step: `node dist/test/sweep/main.js [--side SIDE] [--from N] [--every N]`. See deaths.ts. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { SIDES, sweep, type Side } from './deaths.js';

const { values } = parseArgs({
  options: {
    side: { type: 'string' },
    from: { type: 'string', default: '1' },
    every: { type: 'string', default: '1' },
    help: { type: 'boolean' },
  },
});
const [from, every] = [Number(values.from), Number(values.every)];
const sides = values.side === undefined ? SIDES : SIDES.filter((side) => side === values.side);
const isRight = (value: number): boolean => Number.isSafeInteger(value) && value >= 1;
if (values.help === true || !isRight(from) || !isRight(every) || sides.length === 0) {
  console.error(`usage: sweep [--side ${SIDES.join('|')}] [--from N] [--every N]`);
  process.exit(values.help === true ? 0 : 2);
}

// Sockets of its own.
const folder = mkdtempSync(join(tmpdir(), 'sweep-'));
process.env['XDG_RUNTIME_DIR'] = folder;
try {
  for (const side of sides) await run(side);
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}

async function run(side: Side): Promise<void> {
  let shown = performance.now();
  const report = await sweep(side, {
    from,
    every,
    onRun: (at, { steps }) => {
      if (performance.now() - shown < 10_000) return;
      shown = performance.now();
      console.log(`${side}: step ${at} of ${steps}`);
    },
  });
  console.log(`${side}: ${JSON.stringify(report)}: nothing was left, lost or doubled`);
}
