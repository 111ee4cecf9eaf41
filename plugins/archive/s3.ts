import { AwsClient } from 'aws4fetch'
import { gathered } from './bytes.js'
import type { ArchiveStore, StoredFile } from './store.js'

export interface S3Options {
  /** Such as https://s3.eu-central-1.amazonaws.com; the bucket is the first part of the path. */
  readonly endpoint: string
  readonly region: string
  readonly bucket: string
  /** Of all keys; empty, or with a slash at its end. */
  readonly prefix: string
  readonly accessKeyId: string
  readonly secretAccessKey: string
}

/** The least that S3 takes as a part of an upload is 5 MB; 10,000 of them are the most, so an archive may have 80 GB. */
const PART_BYTES = 8_000_000
const RETRIES = 5
const UNFINISHED_MILLISECONDS = 86_400_000

/** The store answered something else than it should. */
class StoreRefused extends Error {}

/** Any store that speaks S3: signed requests, and no more of the API than this needs. */
export function s3Store(options: S3Options): ArchiveStore {
  const { endpoint, region, bucket, prefix, accessKeyId, secretAccessKey } = options
  const client = new AwsClient({ accessKeyId, secretAccessKey, region, service: 's3', retries: RETRIES })
  const root = `${endpoint.replace(/\/+$/, '')}/${bucket}`
  const urlOf = (path: string, query = '') =>
    `${root}/${(prefix + path).split('/').map(encodeURIComponent).join('/')}${query}`
  const send = async (what: string, url: string, init: RequestInit = {}): Promise<Response> => {
    const answer = await client.fetch(url, init)
    if (answer.ok) return answer
    const code = textOf(await answer.text(), 'Code')[0] ?? 'no reason'
    throw new StoreRefused(`the store of archives refuses to ${what} (${answer.status}, ${code})`)
  }

  async function list(path: string): Promise<StoredFile[]> {
    const files: StoredFile[] = []
    const folder = `${prefix}${path}/`
    // The older of the two ways to list: a page begins after a key, which every store understands.
    for (let last = ''; ; ) {
      const query = new URLSearchParams({ prefix: folder, ...(last === '' ? {} : { marker: last }) })
      const xml = await (await send('list', `${root}?${query}`)).text()
      for (const content of textOf(xml, 'Contents')) {
        last = textOf(content, 'Key')[0] ?? ''
        const name = last.slice(folder.length)
        if (name !== '' && !name.includes('/')) files.push({ name, bytes: Number(textOf(content, 'Size')[0]) })
      }
      if (textOf(xml, 'IsTruncated')[0] !== 'true') return files
    }
  }

  async function upload(path: string, first: Buffer, rest: AsyncIterator<Buffer>): Promise<void> {
    const begun = await (await send('begin an upload', urlOf(path, '?uploads='), { method: 'POST' })).text()
    const uploadId = encodeURIComponent(textOf(begun, 'UploadId')[0] ?? '')
    try {
      const parts: string[] = []
      let piece: IteratorResult<Buffer> = { done: false, value: first }
      for (let n = 1; piece.done !== true; n++) {
        const url = urlOf(path, `?partNumber=${n}&uploadId=${uploadId}`)
        const answer = await send('take a part', url, { method: 'PUT', body: new Uint8Array(piece.value) })
        parts.push(`<Part><PartNumber>${n}</PartNumber><ETag>${answer.headers.get('etag') ?? ''}</ETag></Part>`)
        piece = await rest.next()
      }
      const body = `<CompleteMultipartUpload>${parts.join('')}</CompleteMultipartUpload>`
      const done = await send('end an upload', urlOf(path, `?uploadId=${uploadId}`), { method: 'POST', body })
      // It may answer 200 before it knows.
      if (/<Error>/.test(await done.text())) throw new StoreRefused('the store of archives could not end an upload')
    } catch (error) {
      await send('give an upload up', urlOf(path, `?uploadId=${uploadId}`), { method: 'DELETE' }).catch(() => {})
      throw error
    }
  }

  return {
    list,
    put: async (path, content) => {
      const pieces = gathered(content, PART_BYTES)
      const { value: first, done } = await pieces.next()
      if (done === true || first.length < PART_BYTES) {
        const body = new Uint8Array(done === true ? Buffer.alloc(0) : first)
        await send('take an archive', urlOf(path), { method: 'PUT', body })
        return
      }
      await upload(path, first, pieces)
    },
    get: async (path) => {
      const { body } = await send('give an archive', urlOf(path))
      if (body === null) throw new StoreRefused('the store of archives gave an empty answer')
      return body
    },
    remove: async (path) => void (await send('remove an archive', urlOf(path), { method: 'DELETE' })),
    tidy: async (path) => {
      const xml = await client.fetch(`${root}?uploads=&prefix=${encodeURIComponent(`${prefix}${path}/`)}`)
      // Not every store lists them; one that keeps its own rule for them needs no help.
      if (!xml.ok) return
      for (const upload of textOf(await xml.text(), 'Upload')) {
        const [key = ''] = textOf(upload, 'Key')
        const begunAt = Date.parse(textOf(upload, 'Initiated')[0] ?? '')
        const id = encodeURIComponent(textOf(upload, 'UploadId')[0] ?? '')
        if (Date.now() - begunAt < UNFINISHED_MILLISECONDS) continue
        await send('give an upload up', urlOf(key.slice(prefix.length), `?uploadId=${id}`), { method: 'DELETE' })
      }
    }
  }
}

const ENTITIES: Record<string, string> = { lt: '<', gt: '>', quot: '"', apos: "'", amp: '&' }
/** The contents of each element of a name, in answers that are as flat and plain as these are. */
const textOf = (xml: string, element: string): string[] =>
  [...xml.matchAll(new RegExp(`<${element}>([\\s\\S]*?)</${element}>`, 'g'))].map(([, text = '']) =>
    text.replace(/&(lt|gt|quot|apos|amp);/g, (_all, name: string) => ENTITIES[name] ?? '')
  )
