'use strict'
// A gateway of Fastify's own plugins, as their documentation has it: undici's pool, a cache of verified tokens, no request log.
const fs = require('node:fs')
const fastify = require('fastify')()

const { PORT, UPSTREAM, PUBLIC_KEY, ISSUER, AUDIENCE } = process.env

fastify.register(require('@fastify/jwt'), {
  secret: { public: fs.readFileSync(PUBLIC_KEY) },
  verify: { algorithms: ['ES256'], allowedIss: ISSUER, allowedAud: AUDIENCE, cache: 20000 }
})
fastify.register(require('@fastify/http-proxy'), {
  upstream: UPSTREAM,
  prefix: '/v1/items',
  rewritePrefix: '/v1/items',
  preHandler: async (request) => request.jwtVerify()
})
fastify.listen({ host: '127.0.0.1', port: Number(PORT) })
