/** The books against the real kernel: random mapping and unmapping, and as many mappings as it takes. */
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { Eal, isDmaError, KiB, type Device, type Iova, type Mapping, type Va } from '../../../src/index.js';
import { dice } from '../dice.js';
import { bindToVfio, CHOICE, EDU, EDU_SECOND, KIND } from '../guest.js';

const PAGE = 4 * KiB;

before(() => bindToVfio([EDU, EDU_SECOND]));

/** What is mapped, page by page, as anybody would keep it. */
class Model {
  /** VA page to IOVA page */
  readonly pages = new Map<number, number>();
  readonly taken = new Set<number>();

  add(va: number, iova: number, count: number): void {
    for (let i = 0; i < count; i++) {
      this.pages.set(va + i, iova + i);
      this.taken.add(iova + i);
    }
  }

  remove(va: number, count: number): void {
    for (let i = 0; i < count; i++) {
      this.taken.delete(this.pages.get(va + i) ?? -1);
      this.pages.delete(va + i);
    }
  }

  vaBusy(va: number, count: number): boolean {
    return Array.from({ length: count }, (_, i) => this.pages.has(va + i)).includes(true);
  }

  iovaBusy(iova: number, count: number): boolean {
    return Array.from({ length: count }, (_, i) => this.taken.has(iova + i)).includes(true);
  }
}

for (const seed of [1, 2, 3])
  test(`random mapping and unmapping, seed ${seed}: every result and byte count is the model's`, async () => {
    await using eal = await Eal.start({ iommu: CHOICE, origins: false, holdBackMs: 0 });
    const device = await eal.probe(`pci:${EDU}`);
    const { domain } = device;
    assert.ok(domain !== undefined);
    const pages = 64;
    using memory = eal.external.allocate(pages * PAGE);
    const first = memory.va / PAGE;
    const model = new Model();
    const live: Mapping[] = [];
    const roll = dice(seed);
    const counts = { mapped: 0, refused: 0, unmapped: 0 };
    for (let step = 0; step < 1500; step++) {
      const va = first + roll(pages);
      const count = 1 + roll(Math.min(8, first + pages - va));
      const target = { va: (va * PAGE) as Va, length: count * PAGE };
      if (roll(3) > 0) {
        // Half of them at an IOVA of the test's choice, from a range so small that they collide.
        const iova = roll(2) === 0 ? undefined : 0x1000 + roll(48);
        const options = iova === undefined ? {} : { iova: (iova * PAGE) as Iova };
        const same = live.find((each) => each.va === target.va && each.length === target.length);
        if (same !== undefined) continue;
        const expected =
          model.vaBusy(va, count) || (iova !== undefined && model.iovaBusy(iova, count)) ? 'EEXIST' : 'ok';
        let result = 'ok';
        try {
          const mapping = device.dmaMap(target, options);
          live.push(mapping);
          assert.ok(iova === undefined || mapping.iova === iova * PAGE);
          assert.equal(model.iovaBusy(mapping.iova / PAGE, count), false);
          model.add(va, mapping.iova / PAGE, count);
          counts.mapped++;
        } catch (error) {
          result = isDmaError(error) ? error.code : String(error);
          counts.refused++;
        }
        assert.equal(result, expected, `step ${step}`);
      } else if (live.length > 0) {
        const [mapping] = live.splice(roll(live.length), 1);
        // EIO when the kernel's byte count is another one.
        mapping.unmap();
        model.remove(mapping.va / PAGE, mapping.length / PAGE);
        counts.unmapped++;
      }
      assert.equal(domain.bytes, model.pages.size * PAGE);
    }
    assert.ok(counts.mapped > 200 && counts.refused > 100 && counts.unmapped > 150, JSON.stringify(counts));
    for (const mapping of live) mapping.unmap();
    assert.deepEqual([domain.bytes, domain.entries], [0, 0]);
  });

test(
  'mappings until the kernel takes no more: a clear error, and everything goes on',
  { timeout: 300_000 },
  async () => {
    await using eal = await Eal.start({ iommu: CHOICE, origins: false, holdBackMs: 0 });
    const device = await eal.probe(`bus=pci,addr=${EDU_SECOND}/driver=raw`);
    const wanted = 100_000;
    using memory = eal.external.allocate(wanted * PAGE);
    const mappings: Mapping[] = [];
    let refusal: unknown;
    for (let i = 0; i < wanted && refusal === undefined; i++) {
      try {
        mappings.push(device.dmaMap({ va: memory.va + i * PAGE, length: PAGE }));
      } catch (error) {
        refusal = error;
      }
    }
    if (KIND === 'iommufd') {
      assert.equal(refusal, undefined);
      assert.equal(mappings.length, wanted);
    } else {
      assert.ok(isDmaError(refusal, 'ENOSPC'), String(refusal));
      assert.match(refusal.message, /65535/);
      assert.equal(mappings.length, 65535);
    }
    canGoOn(device, mappings);
    for (const mapping of mappings) mapping.unmap();
    assert.deepEqual([device.domain?.entries, device.domain?.bytes], [0, 0]);
    using whole = device.dmaMap(memory);
    assert.equal(whole.length, memory.length);
  },
);

/** One goes, and one comes in its place. */
function canGoOn(device: Device, mappings: Mapping[]): void {
  const gone = mappings.splice(mappings.length >> 1, 1)[0];
  const { va, length } = gone;
  gone.unmap();
  mappings.push(device.dmaMap({ va, length }));
}
